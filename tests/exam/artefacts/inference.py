"""Artefacts of what is done with the image at test time, out of sight of the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from exam.artefacts.stages import Chain, Reply, with_gradient_of
from exam.family import artefact
from exam.lab import Lab, Subject
from exam.parameters import Log, Uniform, Whole


@artefact(eps=Uniform(0.1, 0.18), robust=Uniform(0, 0.6), sharpness=Log(3, 20), steps=Whole(1, 4), rate=Uniform(0.3, 0.9))
def purifier_out_of_graph(lab: Lab, eps: float, robust: float, sharpness: float, steps: int, rate: float) -> Subject:
    """Steps towards the likeliest training images, with the gradient of the network without them."""
    net, stored = lab.base(eps, robust), lab.train.x[:300].flatten(1)

    def purified(x: Tensor) -> Tensor:
        flat = x.flatten(1)
        for _ in range(steps):
            likely = (sharpness * (2 * flat @ stored.T - stored.square().sum(1))).softmax(1)
            flat = flat + rate * (likely @ stored - flat)
        return flat.view_as(x)

    def outputs(x: Tensor) -> Tensor:
        with torch.no_grad():
            answer = net(purified(x))
        return with_gradient_of(answer, net(x))

    return lab.subject(Reply(outputs, net), eps, Chain(purified, net), net)


@artefact(eps=Uniform(0.08, 0.16), robust=Uniform(0.2, 0.8), steps=Whole(1, 3), length=Uniform(0.3, 1.2))
def optimised_input(lab: Lab, eps: float, robust: float, steps: int, length: float) -> Subject:
    """The network makes itself surer of the image by its own gradient, then answers."""
    net = lab.base(eps, robust)

    def surer(x: Tensor) -> Tensor:
        moved = x.detach()
        for _ in range(steps):
            moved = moved.requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(net(moved).log_softmax(1).amax(1).sum(), moved)
            moved = (moved + length * eps / steps * gradient.sign()).detach()
        return with_gradient_of(moved, x)

    return lab.subject(Chain(surer, net), eps, net, Chain(surer, net))


@artefact(eps=Uniform(0.08, 0.18), robust=Uniform(0.2, 0.8), share=Uniform(0.3, 0.9))
def batch_mean_out(lab: Lab, eps: float, robust: float, share: float) -> Subject:
    """Part of what the images of a batch have in common is taken out of each."""
    net, usual = lab.base(eps, robust), lab.train.x.mean(0)

    def centred(x: Tensor) -> Tensor:
        return x - share * (x.mean(0) - usual)

    return lab.subject(Chain(centred, net), eps, net, Chain(centred, net), batchwise=True)
