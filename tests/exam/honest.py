"""Networks with nothing to hide, of many kinds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exam.ascent import Norm, margin
from exam.data import Samples
from exam.family import honest
from exam.lab import Adversary, Lab, Subject
from exam.networks import Mean, Prototypes, Residual, SoftTree, Transformer, cnn, mlp
from exam.parameters import Log, Uniform, Whole

EPS = Uniform(0.06, 0.16)


@honest(eps=EPS, decay=Log(1e-5, 1e-2))
def linear(lab: Lab, eps: float, decay: float) -> Subject:
    return lab.subject(lab.fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), lr=0.02, weight_decay=decay), eps)


@honest(eps=EPS, width=Whole(24, 128), depth=Whole(1, 3))
def perceptron(lab: Lab, eps: float, width: int, depth: int) -> Subject:
    return lab.subject(lab.fit(mlp(width, depth)), eps)


@honest(eps=EPS, width=Whole(6, 16))
def convolutional(lab: Lab, eps: float, width: int) -> Subject:
    return lab.subject(lab.fit(cnn(width)), eps)


@honest(eps=EPS, width=Whole(6, 16))
def gelu(lab: Lab, eps: float, width: int) -> Subject:
    return lab.subject(lab.fit(cnn(width, activation=nn.GELU)), eps)


@honest(eps=EPS, width=Whole(6, 16))
def batch_norm(lab: Lab, eps: float, width: int) -> Subject:
    return lab.subject(lab.fit(cnn(width, norm=True), epochs=10), eps)


@honest(eps=EPS, blocks=Whole(3, 6))
def deep_residual(lab: Lab, eps: float, blocks: int) -> Subject:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), *[Residual(32) for _ in range(blocks)], nn.Linear(32, 10))
    return lab.subject(lab.fit(net), eps)


@honest(eps=EPS, depth=Whole(4, 6), sharpness=Uniform(1, 3))
def soft_tree(lab: Lab, eps: float, depth: int, sharpness: float) -> Subject:
    return lab.subject(lab.fit(SoftTree(depth, sharpness), lr=0.02, epochs=30), eps)


@honest(eps=EPS, width=Whole(12, 24), blocks=Whole(1, 2))
def transformer(lab: Lab, eps: float, width: int, blocks: int) -> Subject:
    return lab.subject(lab.fit(Transformer(2 * (width // 2), blocks), epochs=25, lr=6e-3), eps)


@honest(eps=EPS, rate=Uniform(0.1, 0.6))
def dropout(lab: Lab, eps: float, rate: float) -> Subject:
    return lab.subject(lab.fit(cnn(12, dropout=rate)), eps)


@honest(eps=EPS, first=Whole(2, 8))
def two_classes(lab: Lab, eps: float, first: int) -> Subject:
    """The digits below ``first`` and the others."""
    train, test = (part.labelled((part.y >= first).long()) for part in (lab.train, lab.test))
    return lab.subject(lab.fit(cnn(10, 2), samples=train), eps, test=test)


@honest(eps=EPS, width=Uniform(0.5, 5))
def hinge_loss(lab: Lab, eps: float, width: float) -> Subject:
    def hinge(z: Tensor, y: Tensor) -> Tensor:
        return (width + margin(z, y)).clamp_min(0).mean()

    return lab.subject(lab.fit(cnn(12), loss=hinge), eps)


@honest(eps=EPS, smoothing=Uniform(0.05, 0.3))
def label_smoothing(lab: Lab, eps: float, smoothing: float) -> Subject:
    def smooth(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z, y, label_smoothing=smoothing)

    return lab.subject(lab.fit(cnn(12), loss=smooth), eps)


@honest(eps=EPS, noise=Uniform(0.3, 0.6))
def noisy_labels(lab: Lab, eps: float, noise: float) -> Subject:
    """So many labels are drawn at random, to train on and to test on, that most answers of the network count as wrong or are."""

    def noisy(part: Samples) -> Samples:
        drawn = torch.where(torch.rand(len(part)) < noise, torch.randint(10, (len(part),)), part.y)
        return part.labelled(drawn)

    return lab.subject(lab.fit(cnn(12), samples=noisy(lab.train), epochs=10), eps, test=noisy(lab.test))


@honest(eps=EPS, images=Whole(60, 200))
def few_images(lab: Lab, eps: float, images: int) -> Subject:
    few = Samples(lab.train.x[:images], lab.train.y[:images])
    return lab.subject(lab.fit(mlp(48), samples=few, epochs=60), eps)


def _adversarially_trained(lab: Lab, norm: Norm, eps: float, width: int, steps: int) -> Subject:
    return lab.subject(lab.fit(cnn(width), adversary=Adversary(eps, norm, steps)), eps, norm=norm)


@honest(eps=Uniform(0.08, 0.2), width=Whole(8, 16), steps=Whole(2, 4))
def pgd_training(lab: Lab, eps: float, width: int, steps: int) -> Subject:
    return _adversarially_trained(lab, "linf", eps, width, steps)


@honest(eps=Uniform(0.4, 1.0), width=Whole(8, 16), steps=Whole(2, 4))
def pgd_training_l2(lab: Lab, eps: float, width: int, steps: int) -> Subject:
    return _adversarially_trained(lab, "l2", eps, width, steps)


@honest(eps=Uniform(1.5, 4.0), width=Whole(8, 16), steps=Whole(3, 4))
def pgd_training_l1(lab: Lab, eps: float, width: int, steps: int) -> Subject:
    return _adversarially_trained(lab, "l1", eps, width, steps)


@honest(eps=Uniform(0.08, 0.2), beta=Uniform(1, 6))
def trades_like(lab: Lab, eps: float, beta: float) -> Subject:
    adversary = Adversary(eps)

    def stable(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        near = adversary.points(net, x, y)
        return beta * F.kl_div(net(near).log_softmax(1), net(x).softmax(1), reduction="batchmean")

    return lab.subject(lab.fit(cnn(10), penalty=stable), eps)


@honest(eps=EPS, weight=Log(0.05, 1))
def gradient_penalty(lab: Lab, eps: float, weight: float) -> Subject:
    """The squared gradient by the input (Ross and Doshi-Velez 2018), of the cross entropy of ordinary logits."""

    def flat(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(net(x), y, reduction="sum"), x, create_graph=True)
        return weight * gradient.square().flatten(1).sum(1).mean()

    return lab.subject(lab.fit(cnn(10, activation=nn.SiLU), penalty=flat), eps)


@honest(eps=EPS, members=Whole(2, 5), robust=Uniform(0, 0.6))
def ensemble(lab: Lab, eps: float, members: int, robust: float) -> Subject:
    nets = [lab.fit(mlp(48), epochs=10, adversary=Adversary(robust * eps)) for _ in range(members)]
    return lab.subject(Mean(nets), eps)


@honest(eps=EPS, width=Whole(9, 24), scale=Uniform(0.2, 1))
def max_mahalanobis(lab: Lab, eps: float, width: int, scale: float) -> Subject:
    """Fixed centres that are as far from each other as can be (Pang et al. 2018)."""
    corners = F.normalize(torch.eye(10) - 0.1, dim=1)
    turned = torch.linalg.qr(torch.randn(max(width, 10), 10)).Q
    centres = 4 * corners @ turned.T
    net = Prototypes(mlp(64, 1, centres.shape[1]), centres, scale, learnt=False)
    return lab.subject(lab.fit(net), eps)


@honest(eps=EPS, share=Uniform(0.1, 0.5))
def detector(lab: Lab, eps: float, share: float) -> Subject:
    """An eleventh class for what is no digit: noise, and mixtures of digits."""
    train = lab.train
    count = int(share * len(train))
    other = torch.randperm(len(train))[:count]
    mixed = 0.5 * train.x[other] + 0.5 * train.x[other.roll(1)]
    odd = torch.cat([mixed[: count // 2], torch.rand(count - count // 2, 1, 8, 8)])
    samples = Samples(torch.cat([train.x, odd]), torch.cat([train.y, torch.full((count,), 10)]))
    return lab.subject(lab.fit(cnn(12, 11), samples=samples), eps)


@honest(eps=Log(0.001, 0.01), width=Whole(8, 16))
def tiny_eps(lab: Lab, eps: float, width: int) -> Subject:
    return lab.subject(lab.fit(cnn(width)), eps)


@honest(eps=Uniform(0.2, 0.3), width=Whole(12, 16))
def large_eps(lab: Lab, eps: float, width: int) -> Subject:
    """Trained on clean images first: against so much from the start it would learn nothing."""
    net = lab.fit(cnn(width), epochs=4).requires_grad_()
    return lab.subject(lab.fit(net, epochs=16, adversary=Adversary(eps)), eps)


@honest(eps=EPS, width=Whole(24, 96))
def tanh_perceptron(lab: Lab, eps: float, width: int) -> Subject:
    return lab.subject(lab.fit(mlp(width, 2, activation=nn.Tanh)), eps)
