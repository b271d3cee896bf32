"""Attacks for where gradients mislead, on a linear classifier whose worst case is a closed form, each beside its control."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import robustkd
from robustkd.contracts import UsageError
from robustkd.targets import ClassifierTarget
from robustkd.targets.automatic_surrogates import DifferentiableTarget
from support.disguises import DISGUISES, Linear, Network, hooked, opaque

EPS = 0.15
MARGIN = {"kind": "pgd", "loss": "margin", "steps": 20}


@pytest.fixture(scope="module")
def linear() -> Linear:
    return Linear.of_digits(120)


def left(attack, linear: Linear, disguise=None, **more) -> float:
    return robustkd.attack(attack, Network(linear, disguise), linear.x, linear.y, eps=EPS, **more).robust_accuracy


@pytest.mark.parametrize("name", DISGUISES)
def test_bpda_finds_the_stages_by_itself(linear, name):
    assert (
        left({"kind": "bpda", "automatic": True, "attack": MARGIN}, linear, DISGUISES[name])
        <= linear.robust_accuracy(EPS) + 0.02
    )


@pytest.mark.parametrize("name", ["noise", "detached", "hooked", "exponentials", "clipped", "looked_up"])
def test_without_it_these_gradients_mislead(linear, name):
    assert left(MARGIN, linear, DISGUISES[name]) > linear.robust_accuracy(EPS) + 0.2


def test_a_network_without_such_stages_is_left_as_it_is(linear):
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.LayerNorm(144), nn.Linear(144, 10)
    ).eval()
    target = DifferentiableTarget(ClassifierTarget(net, num_classes=10, input_shape=(1, 8, 8)))
    x = linear.x.clone().requires_grad_()
    assert torch.equal(target(x), net(x))
    assert target.replaced == []


def test_hooks_of_the_network_are_there_again_afterwards(linear):
    network, seen = Network(linear), []
    network.register_full_backward_hook(lambda module, given, upstream: seen.append(1))
    left({"kind": "bpda", "automatic": True, "attack": MARGIN}, linear, hooked)
    robustkd.attack({"kind": "bpda", "automatic": True, "attack": MARGIN}, network, linear.x, linear.y, eps=EPS)
    assert seen == []
    x = linear.x.clone().requires_grad_()
    network(x).sum().backward()
    assert seen == [1]


def test_what_declares_nothing_is_told_of_automatic(linear):
    with pytest.raises(Exception, match="automatic: true"):
        left("bpda", linear)


def surrogate(linear: Linear, **more) -> float:
    return left({"kind": "distilled-surrogate", **more}, linear, opaque, fit_data=(linear.x, linear.y))


@pytest.mark.slow
def test_a_distilled_surrogate_needs_no_gradient_and_an_untrained_one_is_no_help(linear):
    truth = linear.robust_accuracy(EPS)
    assert surrogate(linear, queries=0) <= truth + 0.03
    # The control: the same attack on a student that has learnt nothing.
    assert surrogate(linear, queries=0, training_steps=1, rounds=0) > truth + 0.2
    with pytest.raises(UsageError, match="learns from training data"):
        left("distilled-surrogate", linear)


def test_refining_by_queries_never_leaves_more(linear):
    few = {"training_steps": 20, "rounds": 0}
    assert surrogate(linear, queries=300, **few) < surrogate(linear, queries=0, **few)


def rippled(linear: Linear, x: torch.Tensor) -> torch.Tensor:
    """A ripple of a twentieth of the budget, whose slope is six times that of what it is added to."""
    return linear(x + 0.0075 * torch.sin(2 * math.pi * x / 0.008))


def test_a_mean_over_neighbours_sees_through_a_ripple(linear):
    smooth = {"kind": "smoothed-pgd", "neighbours": 32, "reach": 0.5}
    mean, control = left(smooth, linear, rippled), left({**smooth, "neighbours": 1, "reach": 1e-6}, linear, rippled)
    assert mean <= linear.robust_accuracy(EPS) + 0.1
    assert mean < control - 0.15
    assert left(smooth, linear) <= linear.robust_accuracy(EPS) + 0.02


def test_square_that_gives_up_spends_less_and_finds_nearly_as_much(linear):
    def square(give_up: bool) -> robustkd.AttackReport:
        spec = {"kind": "square", "queries": 1000, "give_up": give_up}
        return robustkd.attack(spec, Network(linear), linear.x, linear.y, eps=EPS)

    whole, short = square(False), square(True)
    assert short.outcome.forwards.sum() < 0.8 * whole.outcome.forwards.sum()
    assert whole.robust_accuracy <= short.robust_accuracy <= whole.robust_accuracy + 0.05
