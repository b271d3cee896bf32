"""Searches by scores beside their authors' code: what they estimate is the gradient, and what they estimate last counts.

Bandits divided by the exploration once more than its authors do. In l2, where that is a hundredth, the first random direction was so
long that no later one changed it: on a network for MNIST 91.7 % stood where the authors' code left 51.7 %. Its steps were a
fourth (linf) or half (l2) of theirs. NES forgot at each step what the former ones had found, where its authors' code has a momentum: 72 %
stood, of the same searches with it 31 %. Queries at the bounds of the pixels were cut back, and told half or nothing.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustkd


class Slope(nn.Module):
    """Wrong where the weighted sum of the pixels has risen by ``far``; remembers what it is asked."""

    def __init__(self, weight: Tensor, clean: Tensor, far: float) -> None:
        super().__init__()
        self.weight, self.start, self.far = weight, float((weight * clean).sum()), far
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach().clone())
        risen = (self.weight * x).flatten(1).sum(1) - self.start
        return torch.stack([self.far - risen, risen - self.far], 1)


def _attacked(name: str, weight: Tensor, clean: float, far: float, **more: Any) -> tuple[bool, Slope]:
    x = torch.full((1, *weight.shape), clean)
    network = Slope(weight, x[0], far)
    report = robustkd.attack(name, network, x, torch.zeros(1, dtype=torch.long), **more)
    return report.robust_accuracy == 0, network


@pytest.mark.parametrize("seed", range(3))
def test_in_l2_later_directions_count(seed: int) -> None:
    """Two thirds of what the gradient itself would reach within eps: random directions of 64 numbers reach an eighth."""
    weight = torch.randn((1, 8, 8), generator=torch.Generator().manual_seed(seed))
    weight = weight / weight.norm()
    broken, _ = _attacked("bandits", weight, 0.5, 2 / 3, norm="l2", eps=1.0, queries=900, tile=1, seed=seed)
    assert broken


def test_in_linf_a_known_direction_is_gone_in_a_few_steps() -> None:
    """One tile: there is nothing to learn but its sign, and five steps are as long as eps."""
    broken, _ = _attacked("bandits", torch.ones(1, 4, 4), 0.5, 0.19 * 16, norm="linf", eps=0.2, queries=31)
    assert broken


@pytest.mark.parametrize("seed", range(3))
def test_what_few_directions_tell_adds_up(seed: int) -> None:
    """Two directions a step, in 64 dimensions; half of what the gradient itself would reach within eps."""
    weight = torch.randn((1, 8, 8), generator=torch.Generator().manual_seed(seed))
    far = 0.1 * float(weight.abs().sum())
    broken, _ = _attacked("nes", weight, 0.5, far, norm="linf", eps=0.2, steps=60, pairs=2, seed=seed)
    assert broken


@pytest.mark.parametrize(
    ("name", "params"),
    [("bandits", {"queries": 7, "tile": 1}), ("nes", {"steps": 1, "pairs": 3}), ("spsa", {"steps": 1, "pairs": 3})],
)
def test_a_black_pixel_is_looked_at_both_ways(name: str, params: dict[str, Any]) -> None:
    """Both queries of a pair are images, as far apart as they are elsewhere."""
    apart = []
    for clean in (0.0, 0.5, 1.0):
        _, network = _attacked(name, torch.ones(1, 4, 4), clean, 9.0, norm="linf", eps=0.1, **params)
        asked = torch.cat(network.asked)
        assert asked.amin() >= 0
        assert asked.amax() <= 1
        pair = next(i for i in range(len(asked)) if (asked[i] != clean).any())
        apart.append((asked[pair] - asked[pair + 1]).flatten())
    assert apart[0].tolist() == pytest.approx(apart[1].tolist(), abs=1e-5)
    assert apart[2].tolist() == pytest.approx(apart[1].tolist(), abs=1e-5)
