"""Artefacts of the input and of hidden layers: gradients that are right and lead nowhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from exam.artefacts.stages import Chain, Reply, staircase, with_gradient_of
from exam.family import artefact
from exam.lab import Adversary, Lab, Subject
from exam.networks import mlp
from exam.parameters import Choice, Log, Uniform, Whole


@artefact(eps=Uniform(0.1, 0.18), robust=Uniform(0.2, 0.8), periods=Uniform(1.5, 6), height=Uniform(0.3, 1.2))
def sine_input(lab: Lab, eps: float, robust: float, periods: float, height: float) -> Subject:
    """A sine of each pixel is added to it, ``periods`` of them in eps."""
    net, period = lab.base(eps, robust), eps / periods

    def wavy(x: Tensor) -> Tensor:
        return x + height * period * (2 * math.pi * x / period).sin()

    return lab.subject(Chain(wavy, net), eps, net)


@artefact(eps=Uniform(0.1, 0.18), robust=Uniform(0.2, 0.8), frequency=Log(20, 2000), height=Uniform(0.2, 0.6))
def chaotic_input(lab: Lab, eps: float, robust: float, frequency: float, height: float) -> Subject:
    """Noise that is a function of the image, another one a hair's breadth away."""
    net = lab.base(eps, robust)
    mix = torch.randn(64, 64) / 8

    def noisy(x: Tensor) -> Tensor:
        return x + height * eps * (frequency * (x.flatten(1) @ mix)).sin().view_as(x)

    return lab.subject(Chain(noisy, net), eps, net)


@artefact(eps=Uniform(0.1, 0.18), levels=Whole(6, 16), sharpness=Log(10, 100))
def thermometer_input(lab: Lab, eps: float, levels: int, sharpness: float) -> Subject:
    """Each pixel as the levels that it exceeds, with the gradient of a steep sigmoid."""
    marks = (torch.arange(levels) + 0.5) / levels

    def coded(x: Tensor, slope: float) -> Tensor:
        above = levels * (x.flatten(1)[:, :, None] - marks)
        return with_gradient_of((above > 0).to(x.dtype), (slope * above).sigmoid()).flatten(1)

    def ramp(x: Tensor) -> Tensor:
        return (levels * (x.flatten(1)[:, :, None] - marks) + 0.5).clamp(0, 1).flatten(1)

    head = mlp(64, 1, inputs=64 * levels)
    model = Chain(lambda x: coded(x, sharpness), head)
    lab.fit(model, epochs=12, adversary=Adversary(0.3 * eps, steps=1))
    gentle = [lambda x, slope=slope: head(coded(x, slope)) for slope in (0.5, 1.0, 3.0)]
    return lab.subject(model, eps, Chain(ramp, head), *gentle)


@artefact(eps=Uniform(0.1, 0.18), robust=Uniform(0.2, 0.8), step=Log(0.06, 0.5), softness=Choice(0, 0.05, 0.2))
def rounded_hidden(lab: Lab, eps: float, robust: float, step: float, softness: float) -> Subject:
    """A hidden layer is rounded, or passes a gentle staircase whose gradient is that of its treads."""
    net = lab.fit(mlp(96, 2), epochs=12, adversary=Adversary(robust * eps))
    assert isinstance(net, nn.Sequential)
    front, back = net[:3], net[3:]

    def rounded(h: Tensor) -> Tensor:
        return staircase(h, step, softness)

    through = Chain(front, lambda h: with_gradient_of(rounded(h), h), back)
    return lab.subject(Chain(front, rounded, back), eps, net, through)


@artefact(eps=Uniform(0.1, 0.18), gain=Log(4, 30), robust=Uniform(0, 0.5))
def saturating_tanh(lab: Lab, eps: float, gain: float, robust: float) -> Subject:
    """Hidden units that are nearly all at plus or minus 1."""
    first, last = nn.Linear(64, 96), nn.Linear(96, 10)

    def through(x: Tensor, factor: float) -> Tensor:
        return last((factor * first(x.flatten(1))).tanh())

    net = Reply(lambda x: through(x, gain), first, last)
    lab.fit(net, epochs=12, adversary=Adversary(robust * eps) if robust else None)
    twins = [lambda x, share=share: through(x, share * gain) for share in (0.1, 0.3, 1.0)]
    return lab.subject(net, eps, *twins)


@artefact(eps=Uniform(0.1, 0.18), robust=Uniform(0.2, 0.8), length=Uniform(0.6, 1.5))
def uphill_input(lab: Lab, eps: float, robust: float, length: float) -> Subject:
    """A layer that moves the input towards what a linear model takes it for, in closed form, before it is classified."""
    net, linear = lab.base(eps, robust), nn.Linear(64, 10)
    lab.fit(Chain(nn.Flatten(), linear), epochs=15)
    weight = linear.weight

    def moved(x: Tensor) -> Tensor:
        best = linear(x.flatten(1)).topk(2, dim=1).indices
        away = weight[best[:, 0]] - weight[best[:, 1]]
        return (x + length * eps * away.sign().view_as(x)).clamp(0, 1)

    def softly(x: Tensor, sharpness: float) -> Tensor:
        scores = linear(x.flatten(1))
        gap = scores.detach().topk(2, dim=1).values
        share = (sharpness * (scores - gap.mean(1, keepdim=True))).softmax(1)
        away = (share @ weight).view_as(x)
        return net(x + length * eps * (20 * away).tanh())

    twins = [lambda x, c=c: net(moved(x)) + c * linear(x.flatten(1)) for c in (0.0, 0.3, 1.0, 3.0)]
    return lab.subject(Chain(moved, net), eps, *twins, lambda x: softly(x, 2.0), net)
