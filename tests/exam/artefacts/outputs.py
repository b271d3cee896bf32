"""Artefacts of the outputs: what a loss sees of the logits, not what the network decides."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from exam.artefacts.stages import Chain
from exam.family import artefact
from exam.lab import Adversary, Lab, Subject
from exam.networks import Prototypes, cnn, mlp
from exam.parameters import Choice, Log, Uniform


@artefact(
    eps=Uniform(0.1, 0.18), robust=Uniform(0.2, 0.8), sharpness=Log(1, 10), smoothing=Log(1e-4, 0.03),
    kind=Choice("softmax", "log"),
)  # fmt: skip
def smoothed_probabilities(lab: Lab, eps: float, robust: float, sharpness: float, smoothing: float, kind: str) -> Subject:
    """Ten times the softmax, or the logarithm of probabilities that are mixed with the uniform ones."""
    net = lab.base(eps, robust)

    def outputs(z: Tensor) -> Tensor:
        p = (sharpness * z).softmax(1)
        return 10 * p if kind == "softmax" else ((1 - smoothing) * p + smoothing / 10).log()

    return lab.subject(Chain(net, outputs), eps, net)


@artefact(eps=Uniform(0.1, 0.18), smoothing=Uniform(0.2, 0.6), limit=Log(0.1, 1), robust=Uniform(0, 0.6))
def squeezed_logits(lab: Lab, eps: float, smoothing: float, limit: float, robust: float) -> Subject:
    """Label smoothing, and a tanh behind the logits."""

    def smooth(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z, y, label_smoothing=smoothing)

    net = lab.fit(cnn(12), loss=smooth, epochs=12, adversary=Adversary(robust * eps))
    return lab.subject(Chain(net, lambda z: limit * (z / limit).tanh()), eps, net)


@artefact(eps=Uniform(0.1, 0.18), robust=Uniform(0, 0.8), factor=Log(1e3, 1e6))
def enlarged_logits(lab: Lab, eps: float, robust: float, factor: float) -> Subject:
    """Logits so large that float32's cross entropy is 0."""
    net = lab.base(eps, robust)
    return lab.subject(Chain(net, lambda z: factor * z), eps, net)


@artefact(eps=Uniform(0.1, 0.18), robust=Uniform(0, 0.8), step=Log(0.02, 1.5))
def rounded_logits(lab: Lab, eps: float, robust: float, step: float) -> Subject:
    net = lab.base(eps, robust)
    return lab.subject(Chain(net, lambda z: (z / step).round() * step), eps, net)


@artefact(eps=Uniform(0.1, 0.18), robust=Uniform(0, 0.7), width=Log(0.3, 3))
def radial_basis_head(lab: Lab, eps: float, robust: float, width: float) -> Subject:
    """Radial basis functions around one point for each class, flat where an image is far from all of them."""
    net = lab.fit(Prototypes(mlp(64, 1, 16), 2 * torch.randn(10, 16)), epochs=12, adversary=Adversary(robust * eps))

    def basis(z: Tensor) -> Tensor:
        return 10 * (z / width).exp()

    return lab.subject(Chain(net, basis), eps, net)


@artefact(eps=Uniform(0.1, 0.18), robust=Uniform(0, 0.7), gain=Log(10, 200), floor=Log(1e-6, 1e-2))
def clipped_confidence(lab: Lab, eps: float, robust: float, gain: float, floor: float) -> Subject:
    """Probabilities of a very sure softmax, clipped before their logarithm: flat wherever the network is sure."""
    net = lab.base(eps, robust)

    def outputs(z: Tensor) -> Tensor:
        tie = 1e-6 * z / z.detach().abs().amax(1, keepdim=True)
        return (gain * z).softmax(1).clamp(floor, 1 - floor).log() + tie.detach()

    return lab.subject(Chain(net, outputs), eps, net)
