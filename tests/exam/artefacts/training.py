"""Artefacts of how a network was trained, or was not."""

from __future__ import annotations

from exam.ascent import Ball, cross_entropy, gradient_of
from exam.family import artefact
from exam.lab import Adversary, Lab, Subject
from exam.networks import cnn, mlp
from exam.parameters import Log, Uniform, Whole


class OneStep(Adversary):
    """FGSM from the clean image with the whole of eps: a network soon learns what it looks like."""

    def points(self, network, x, y):
        ball = Ball(x, self.norm, self.eps)
        return ball.project(x + self.eps * ball.steepest(gradient_of(network, x, y, cross_entropy)))


@artefact(eps=Uniform(0.15, 0.3), width=Whole(16, 24), lr=Log(3e-3, 1e-2))
def fgsm_overfit(lab: Lab, eps: float, width: int, lr: float) -> Subject:
    """Catastrophic overfitting to FGSM."""
    net = lab.fit(cnn(width), epochs=20, lr=lr, adversary=OneStep(eps))
    return lab.subject(net, eps)


@artefact(eps=Uniform(0.05, 0.2), width=Whole(8, 32))
def untrained(lab: Lab, eps: float, width: int) -> Subject:
    return lab.subject(mlp(width, 2), eps)
