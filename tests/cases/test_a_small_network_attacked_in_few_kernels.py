"""What an attack does beside the passes of a small network: as few kernels as it can, and the same results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import robustkd
from robustkd.attacks.image.engine import ascent, oracle
from robustkd.attacks.image.engine.ascent import AttackState, Update
from robustkd.attacks.image.engine.ball import StepSize
from robustkd.attacks.image.gradient.pgd import PGD
from robustkd.contracts import TargetError
from robustkd.targets.frozen import parts_of


def small(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)).eval()


def images(count: int) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


class Counting(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return function(*args, **(kwargs or {}))


def calls(work: Any) -> int:
    with Counting() as counting:
        work()
    return counting.calls


def test_a_step_takes_few_kernels_beside_the_passes() -> None:
    network, x = small(), images(4)
    y = network(x).argmax(1)

    def attack(steps: int) -> None:
        robustkd.attack("pgd", network, x, y, eps=1e-7, steps=steps, step_size=1e-7)

    def bare() -> None:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(nn.functional.cross_entropy(network(leaf), y, reduction="sum"), leaf)

    attack(1)
    with robustkd.targets.frozen(network):
        passes = calls(bare)
    assert (calls(lambda: attack(9)) - calls(lambda: attack(5))) / 4 < passes + 20  # 17 with torch 2.15, 19 with 2.8


@dataclass(frozen=True)
class InTime:
    """The same steps, of an update that may look at values: the loop computes them in each step."""

    steps: Update

    def step(self, state: AttackState, t: int) -> Tensor:
        return self.steps.step(state, t)


class PGDInTime(PGD):
    def update(self) -> Update:
        return InTime(super().update())


@pytest.mark.parametrize("values", [2**18, 3 * 64])  # three points wait at most
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
@pytest.mark.parametrize("goals", [False, True])
def test_values_that_are_computed_later_are_the_same(
    monkeypatch: pytest.MonkeyPatch, goals: bool, loss: str, values: int
) -> None:
    monkeypatch.setattr(ascent, "_WAITING", values)
    network, x = small(), images(40)
    y = network(x).argmax(1)
    towards = (y + 1) % 5 if goals else None
    params = PGD.Params(steps=7, restarts=2, loss=loss)
    found, expected = (
        robustkd.attack(kind(params), network, x, y, eps=0.05, goals=towards).outcome for kind in (PGD, PGDInTime)
    )
    assert 0 < found.success.sum() < 40
    for name, column in expected.columns().items():
        assert (found.columns()[name] == column).all(), name


def test_the_size_of_a_step_is_that_of_an_update_of_ones_own() -> None:
    network, x = small(), images(6)
    y = network(x).argmax(1)
    size = StepSize(0.01)
    assert isinstance(ascent.SteepestStep(size), ascent.GradientStep)
    reports = [robustkd.attack("bim", network, x, y, eps=0.03, steps=steps) for steps in (3, 3)]
    assert torch.equal(reports[0].adversarial, reports[1].adversarial)


class NaNAfterSomeWay(nn.Module):
    """Right at the image and near it; further away its second logit is NaN."""

    def __init__(self, network: nn.Module, x: Tensor, far: float) -> None:
        super().__init__()
        self.network, self.x, self.far = network, x, far

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        if len(x) == len(self.x) and (x - self.x).abs().max() > self.far:
            return torch.where(torch.arange(5) == logits.argmax(1, keepdim=True), torch.nan, logits)
        return logits


def test_logits_that_are_no_numbers_are_told_of_though_the_label_seems_predicted() -> None:
    x = images(4)
    network = NaNAfterSomeWay(small(), x, 0.005)
    y = network(x).argmax(1)
    with pytest.raises(TargetError, match="NaN or infinite logits for 4 of 4"):
        robustkd.attack("pgd", network, x, y, eps=0.01, steps=10, step_size=1e-3, random_start=False)


def test_a_torch_with_another_engine_gives_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = small(), images(10)
    y = network(x).argmax(1)

    def attacked() -> Tensor:
        oracle._weighted_gradient.cache_clear()
        return robustkd.attack("pgd", network, x, y, eps=0.02, steps=4).adversarial

    expected, taken = attacked(), oracle._weighted_gradient().__name__
    monkeypatch.setattr(torch.autograd.graph, "_engine_run_backward", lambda tensors: None)
    found, then = attacked(), oracle._weighted_gradient().__name__
    oracle._weighted_gradient.cache_clear()
    assert (taken, then) == ("by_engine", "by_sum")
    torch.testing.assert_close(found, expected)


def test_the_parts_of_a_network_are_those_of_torch() -> None:
    shared = nn.Linear(3, 3)
    network = nn.Sequential(nn.Sequential(shared, nn.ReLU()), nn.ModuleList([shared, nn.BatchNorm1d(3)]))
    network.register_module("none", None)
    assert parts_of(network) == list(network.modules())
