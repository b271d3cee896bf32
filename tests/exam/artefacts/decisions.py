"""Artefacts of how the decision is made: votes, codes and neighbours, which change in jumps or hardly at all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exam.artefacts.stages import Chain, Reply, with_gradient_of
from exam.family import artefact
from exam.lab import Adversary, Lab, Subject
from exam.networks import cnn, mlp
from exam.parameters import Choice, Log, Uniform, Whole


@artefact(eps=Uniform(0.1, 0.18), robust=Uniform(0.2, 0.7), bits=Whole(14, 30), gain=Log(2, 20))
def output_codes(lab: Lab, eps: float, robust: float, bits: int, gain: float) -> Subject:
    """Error-correcting output codes: each class a word of bits, a tanh behind each bit."""
    words = torch.where(torch.rand(10, bits) < 0.5, -1.0, 1.0)

    def bitwise(z: Tensor, y: Tensor) -> Tensor:
        return F.softplus(-2 * words[y] * z).mean()

    net = lab.fit(cnn(12, bits), loss=bitwise, epochs=15, adversary=Adversary(robust * eps))
    twins = [lambda x, g=g: (g * net(x)).tanh() @ words.T for g in (0.2, 0.5)]
    return lab.subject(Chain(net, lambda z: (gain * z).tanh() @ words.T), eps, lambda x: net(x) @ words.T, *twins)


@artefact(eps=Uniform(0.1, 0.18), robust=Uniform(0.2, 0.7), gain=Log(2, 15), width=Whole(12, 24))
def merged_binary(lab: Lab, eps: float, robust: float, gain: float, width: int) -> Subject:
    """One classifier for each class, against the rest; their sure answers are merged."""
    parts = [mlp(width, 1, 1) for _ in range(10)]
    merged = Reply(lambda x: torch.cat([part(x) for part in parts], 1), *parts)

    def each(z: Tensor, y: Tensor) -> Tensor:
        return 5 * F.binary_cross_entropy_with_logits(z, F.one_hot(y, 10).float())

    lab.fit(merged, loss=each, epochs=12, adversary=Adversary(robust * eps, steps=1))
    return lab.subject(Chain(merged, lambda z: (gain * z).sigmoid()), eps, merged)


@artefact(eps=Uniform(0.1, 0.18), robust=Uniform(0.3, 0.8), bits=Whole(48, 128), sharpness=Log(2, 20), each=Whole(3, 20))
def hashed_neighbours(lab: Lab, eps: float, robust: float, bits: int, sharpness: float, each: int) -> Subject:
    """The signs of learnt features, and the nearest of a few training images of each class by the number of those that differ."""
    net = lab.fit(mlp(bits, 1, activation=nn.Tanh), epochs=12, adversary=Adversary(robust * eps))
    assert isinstance(net, nn.Sequential)
    front = net[:2]
    rows = torch.cat([(lab.train.y == k).nonzero().squeeze(1)[:each] for k in range(10)])
    stored = front(lab.train.x[rows]).sign()

    def hard(x: Tensor, gain: float) -> Tensor:
        h = front(x)
        code = with_gradient_of(h.sign(), (gain * h).tanh())
        return (code @ stored.T).view(len(x), 10, each).amax(2) / 2

    def soft(x: Tensor, gain: float) -> Tensor:
        like = ((gain * front(x)).tanh() @ stored.T).view(len(x), 10, each)
        return like.logsumexp(2)

    twins = [lambda x, gain=gain, kind=kind: kind(x, gain) for kind in (soft, hard) for gain in (0.5, 1.0, 3.0)]
    return lab.subject(Reply(lambda x: hard(x, sharpness), net), eps, *twins)


@artefact(eps=Uniform(0.1, 0.18), robust=Uniform(0.2, 0.7), copies=Whole(3, 6), levels=Whole(4, 10), sure=Choice(0.0, 0.02))
def majority_of_quantised(lab: Lab, eps: float, robust: float, copies: int, levels: int, sure: float) -> Subject:
    """Copies that see the image rounded differently vote; the mean of their probabilities breaks ties."""
    nets = [lab.fit(mlp(48, 1), epochs=10, adversary=Adversary(robust * eps)) for _ in range(copies)]

    def seen(x: Tensor, number: int) -> Tensor:
        offset = number / copies
        rounded = ((x * levels + offset).floor() - offset + 0.5) / levels
        return rounded.clamp(0, 1)

    def votes(x: Tensor) -> Tensor:
        answers = torch.stack([net(seen(x, number)) for number, net in enumerate(nets)])
        cast = F.one_hot(answers.argmax(2), 10).to(x.dtype).sum(0)
        path = torch.stack([net(x) for net in nets]).softmax(2).mean(0)
        return cast + 1e-3 * answers.softmax(2).mean(0) + sure * (path - path.detach())

    def mean(x: Tensor) -> Tensor:
        return torch.stack([net(x) for net in nets]).mean(0)

    def through(x: Tensor) -> Tensor:
        return (
            torch.stack([net(with_gradient_of(seen(x, number), x)) for number, net in enumerate(nets)]).log_softmax(2).mean(0)
        )

    return lab.subject(Reply(votes, *nets), eps, mean, through)


@artefact(eps=Uniform(0.1, 0.18), robust=Uniform(0.2, 0.7), copies=Whole(3, 9), noise=Uniform(0.5, 1.5))
def random_votes(lab: Lab, eps: float, robust: float, copies: int, noise: float) -> Subject:
    """The majority over images with noise, drawn anew in each pass."""
    net = lab.base(eps, robust)

    def answers(x: Tensor) -> Tensor:
        return torch.stack([net(x + noise * eps * torch.randn_like(x)) for _ in range(copies)])

    def votes(x: Tensor) -> Tensor:
        given = answers(x)
        return F.one_hot(given.argmax(2), 10).to(x.dtype).sum(0) + 1e-3 * given.softmax(2).mean(0)

    return lab.subject(Reply(votes, net), eps, lambda x: answers(x).softmax(2).mean(0).log(), net)


@artefact(eps=Uniform(0.1, 0.18), robust=Uniform(0.2, 0.8), levels=Whole(2, 5), limit=Log(0.1, 1))
def squeezing_guard(lab: Lab, eps: float, robust: float, levels: int, limit: float) -> Subject:
    """A detector: where the answers to an image and to the image in few grey levels differ, a fixed answer without a gradient."""
    net = lab.base(eps, robust)

    def guarded(x: Tensor) -> Tensor:
        z, coarse = net(x), net((x * levels).round() / levels)
        differ = (z.softmax(1) - coarse.softmax(1)).abs().sum(1, keepdim=True) > limit
        return torch.where(differ, 20 * F.one_hot(coarse.argmax(1), 10).to(x.dtype), z)

    def through(x: Tensor) -> Tensor:
        return net(with_gradient_of((x * levels).round() / levels, x))

    return lab.subject(Reply(guarded, net), eps, net, through, lambda x: net(x) + through(x))
