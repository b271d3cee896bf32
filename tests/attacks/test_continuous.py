"""The ascent on vectors: linear values, whose highest point in a ball is known, and a network that must stay as it is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from robustkd.attacks.text.engine.continuous import Direction, Norm, PGDConfig, VectorBall, maximize
from robustkd.contracts.random import SampleRng

B, T, D = 4, 5, 6


def _ball(norm: Norm = "l2") -> VectorBall:
    """All vectors but the first may move, each sample's within a radius of its own."""
    moved = torch.ones(B, T, 1, dtype=torch.bool)
    moved[:, 0] = False
    return VectorBall(moved, torch.tensor([0.5, 1.0, 2.0, 4.0]).reshape(B, 1, 1), norm)


@pytest.mark.parametrize(("norm", "direction"), [("l2", "gradient"), ("linf", "sign")])
def test_reaches_the_highest_point_of_a_linear_value(norm: Norm, direction: Direction) -> None:
    """<g, d> is at most the sum over the vectors of radius ||g|| in l2, radius / sqrt(D) ||g||_1 in linf."""
    g, ball = torch.randn(B, T, D, generator=torch.Generator().manual_seed(0)), _ball(norm)
    start = torch.zeros(B, T, D)
    found = maximize(nn.Identity(), lambda d: (g * d).sum((1, 2)), ball, start, PGDConfig(8, ball.radius / 4, direction))
    lengths = (g[:, 1:].norm(dim=-1) if norm == "l2" else g[:, 1:].abs().sum(-1) / math.sqrt(D)).sum(1)
    torch.testing.assert_close(found.value, ball.radius.reshape(B) * lengths)
    assert (found.d[:, 0] == 0).all()


def test_the_best_iterate_is_kept_not_the_last() -> None:
    """A step of 0.8 from 0 leaps over the top at 0.5, comes back, and never again to where it was highest."""
    ball = VectorBall(torch.ones(1, 1, 1, dtype=torch.bool), torch.full((1, 1, 1), 10.0))
    seen: list[float] = []

    def value(d: Tensor) -> Tensor:
        now = -(d[:, 0, 0] - 0.5).abs() * (1 + 0.2 * len(seen))
        seen.append(now.item())
        return now

    found = maximize(nn.Identity(), value, ball, torch.zeros(1, 1, 1), PGDConfig(5, torch.tensor(0.8), "sign"))
    assert len(seen) == 6
    assert found.value.item() == max(seen) > seen[-1]
    assert found.d.item() == pytest.approx(0.8)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_random_points_are_in_the_ball_and_do_not_depend_on_padding(norm: Norm) -> None:
    ball, rng = _ball(norm), SampleRng(0, torch.arange(B))
    points = ball.random_point(rng, D)
    assert (points.norm(dim=-1, keepdim=True) <= ball.radius * 1.0001).all()
    assert (points[:, 0] == 0).all()
    assert (points[:, 1:].norm(dim=-1) > 0).all()
    wider = VectorBall(torch.cat([ball.moved, torch.zeros(B, 3, 1, dtype=torch.bool)], 1), ball.radius, norm)
    torch.testing.assert_close(wider.random_point(SampleRng(0, torch.arange(B)), D)[:, :T], points)


def test_the_network_is_left_as_found_and_gets_no_gradient() -> None:
    """In training mode with dropout, and gradients of an unfinished step on its weights: neither is seen or touched."""
    network = nn.Sequential(nn.Linear(D, D), nn.Dropout(0.5)).train()
    network(torch.ones(1, D)).sum().backward()
    before = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    ball, seen = _ball(), []

    def value(d: Tensor) -> Tensor:
        seen.append((network[1].training, [parameter.requires_grad for parameter in network.parameters()]))
        return network(d).sum((1, 2))

    maximize(network, value, ball, torch.zeros(B, T, D), PGDConfig(2, ball.radius))
    assert seen == [(False, [False, False])] * 3
    assert network.training
    assert network[1].training
    assert all(parameter.requires_grad for parameter in network.parameters())
    after = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
