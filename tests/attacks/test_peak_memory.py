"""How much an attack holds at its peak, as a multiple of the batch that it attacks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import robustkd
from robustkd.attacks.image.engine import ball
from robustkd.attacks.image.engine.minimum_norm import nearest
from robustkd.contracts import random


def peak(work: Callable[[], object]) -> int:
    """The most bytes of tensors on the CPU that ``work`` has at once, beyond those that were there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.fixture
def thin() -> nn.Module:
    """A network that keeps a sixth of an image for the backward pass, so that what is measured is the attack's own."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 10)
    ).eval()


@pytest.mark.parametrize(
    ("attack", "norm", "budget", "batches"),
    [
        ("pgd", "linf", {"steps": 2}, 8.3),
        ("pgd", "l2", {"steps": 2}, 7.3),
        ("apgd-t", "linf", {"steps": 2, "targets": 3}, 9.3),
        ("fab-t", "linf", {"steps": 2, "targets": 3}, 7.3),
        ("fab", "l2", {"steps": 2}, 7.3),
        ("fab-t", "l1", {"steps": 2, "targets": 3}, 7.3),
        ("deepfool", "l2", {"steps": 2}, 7.4),
        ("fmn", "linf", {"steps": 2}, 7.3),
        ("fmn", "l1", {"steps": 2}, 7.3),
        ("fmn", "l0", {"steps": 2}, 7.3),
        ("ddn", "l2", {"steps": 2}, 7.3),
        ("cw-l2", "l2", {"steps": 4, "binary_steps": 2}, 8.3),
        ("cw-linf", "linf", {"steps": 4}, 8.4),
        ("ead", "l1", {"steps": 4, "binary_steps": 2}, 7.3),
        ("sigma-zero", "l0", {"steps": 4}, 8.4),
        ("square", "linf", {"queries": 4}, 12),
        ("square", "l2", {"queries": 4}, 10),
        ("autoattack", "linf", {"steps": 2, "targets": 2, "queries": 4}, 9.3),
    ],
)
@pytest.mark.slow
def test_an_attack_holds_few_batches(
    thin: nn.Module, monkeypatch: pytest.MonkeyPatch, attack: str, norm: str, budget: dict[str, int], batches: float
) -> None:
    # As many parts as 256 images of 224 x 224 are projected in, on fewer and smaller ones.
    for module in (nearest, ball, random):
        monkeypatch.setattr(module, "_VALUES", 3 * 64 * 64)
    x = torch.rand(16, 3, 64, 64)
    y = thin(x).argmax(1)
    eps = {"linf": 8 / 255, "l2": 1.0, "l1": 12.0, "l0": 20}[norm]
    assert peak(lambda: robustkd.attack(attack, thin, x, y, eps=eps, norm=norm, **budget)) < batches * x.nbytes


def test_the_peak_is_measured() -> None:
    x = torch.rand(4, 1000)

    def work() -> Tensor:
        return (x + 1) * (x + 2) + 3  # three of them at once

    assert peak(work) == pytest.approx(3 * x.nbytes, rel=0.1)
