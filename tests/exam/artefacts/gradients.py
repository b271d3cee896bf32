"""Artefacts of the backward pass: the network is as it was, its gradient is another's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from exam.artefacts.stages import Function, Reply, with_gradient_of
from exam.family import artefact
from exam.lab import Lab, Subject
from exam.parameters import Choice, Log, Uniform


def hooked(x: Tensor, change: Function) -> Tensor:
    """The same input; ``change`` is applied to its gradient."""
    x = x.clone()
    if x.requires_grad:
        x.register_hook(change)
    return x


def misled(lab: Lab, eps: float, robust: float, change: Function) -> Subject:
    net = lab.base(eps, robust)
    return lab.subject(Reply(lambda x: net(hooked(x, change)), net), eps, net)


@artefact(eps=Uniform(0.1, 0.18), robust=Uniform(0.2, 0.8), share=Uniform(0, 0.05))
def noise_gradient(lab: Lab, eps: float, robust: float, share: float) -> Subject:
    """Random numbers, with next to nothing of the gradient."""
    return misled(lab, eps, robust, lambda g: g.abs().mean() * torch.randn_like(g) + share * g)


@artefact(eps=Uniform(0.1, 0.18), robust=Uniform(0.2, 0.8))
def flipped_gradient(lab: Lab, eps: float, robust: float) -> Subject:
    return misled(lab, eps, robust, torch.neg)


@artefact(eps=Uniform(0.1, 0.18), robust=Uniform(0.2, 0.8), left=Choice(0.0, 0.05))
def zero_gradient(lab: Lab, eps: float, robust: float, left: float) -> Subject:
    """No gradient, or that of a few pixels at the edge."""
    kept = (torch.rand(1, 8, 8) < left).float()
    return misled(lab, eps, robust, lambda g: g * kept)


@artefact(eps=Uniform(0.1, 0.18), robust=Uniform(0.2, 0.8), order=Choice("transposed", "rolled"))
def displaced_gradient(lab: Lab, eps: float, robust: float, order: str) -> Subject:
    """The right numbers in the wrong pixels."""
    return misled(lab, eps, robust, lambda g: g.transpose(2, 3) if order == "transposed" else g.roll(3, 3))


@artefact(eps=Uniform(0.1, 0.18), robust=Uniform(0.2, 0.8), blur=Log(0.5, 3), other=Choice(True, False))
def foreign_gradient(lab: Lab, eps: float, robust: float, blur: float, other: bool) -> Subject:
    """The gradient of a copy that sees a blurred image, or of another network that does."""
    net = lab.base(eps, robust)
    copy = lab.base(eps, 0.0) if other else net
    place = torch.arange(-3.0, 4)
    weights = torch.exp(-place.square() / (2 * blur**2))
    weights = weights / weights.sum()

    def blurred(x: Tensor) -> Tensor:
        x = F.conv2d(F.pad(x, (3, 3, 0, 0), "replicate"), weights.view(1, 1, 1, 7))
        return F.conv2d(F.pad(x, (0, 0, 3, 3), "replicate"), weights.view(1, 1, 7, 1))

    return lab.subject(Reply(lambda x: with_gradient_of(net(x), copy(blurred(x))), net, copy), eps, net)
