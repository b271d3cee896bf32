"""Called from code that runs under ``torch.no_grad`` or ``torch.inference_mode``, such as Lightning's ``trainer.test``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustkd
from robustkd import plugins
from robustkd.campaigns.execution import run as campaigns_run
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan.plan import build
from robustkd.contracts import RobustkdError, TargetError, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.evaluation.checks import check_names
from robustkd.evaluation.images import make_batch
from robustkd.integrations.autoattack import AutoAttack
from robustkd.targets import ClassifierTarget
from support.campaigns import tiny_campaign
from support.families import FAMILIES, allowed, brief

MODES = [torch.no_grad, torch.inference_mode]
Mode = Callable[[], AbstractContextManager[object]]
EPS = 0.1
# What takes long even with the fewest steps, with less to do.
LESS = {"autoattack": {"steps": 5, "targets": 2, "queries": 20}, "polish": {"starts": 1, "steps": 3, "free": 4}}


def gradient_attacks() -> list[str]:
    """Robustkd's own attacks on images that differentiate the target and need no second network."""
    known = {name: plugins.load("attacks", name) for name in plugins.names("attacks") if name not in FAMILIES}
    return [
        name
        for name, kind in known.items()
        if kind.modalities == ("images",)
        and kind.gradients
        and name not in ("transfer", "mora", "diff-protect", "eot", "bpda", "sgm", "code")
    ]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


@pytest.fixture(scope="module")
def samples(net: nn.Module) -> tuple[Tensor, Tensor]:
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, net(x).argmax(1)


def attacked(name: str, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return robustkd.attack(
        name, net, x, y, fit_data=(x, y), **allowed(name), **{**brief(name), **LESS.get(name, {})}
    ).adversarial


@pytest.mark.parametrize("name", gradient_attacks())
def test_every_gradient_attack_finds_the_same(name: str, net: nn.Module, samples: tuple[Tensor, Tensor]) -> None:
    outside = attacked(name, net, *samples)
    for mode in MODES:
        with mode():
            x, y = samples[0].clone(), samples[1].clone()  # inference tensors, as a loader gives them there
            found = attacked(name, net, x, y)
        assert torch.equal(found, outside)
        assert not found.is_inference()


@pytest.mark.usefixtures("no_escalation")
@pytest.mark.parametrize(
    ("call", "checks"),
    [(robustkd.evaluate, check_names("standard")), (robustkd.audit, ["zero-gradient", "unstable-loss"])],
    ids=["evaluate", "audit"],
)
def test_evaluate_and_audit_say_the_same(
    only_checks: Callable[..., None], call: Any, checks: list[str], net: nn.Module, samples: tuple[Tensor, Tensor]
) -> None:
    only_checks(*checks)
    outside = call(net, *samples, eps=EPS, attacks=["pgd"], samples=4)
    for mode in MODES:
        with mode():
            inside = call(net, samples[0].clone(), samples[1].clone(), eps=EPS, attacks=["pgd"], samples=4)
        assert str(inside) == str(outside)
        assert inside.findings == outside.findings


@pytest.mark.parametrize("mode", MODES)
def test_the_bridge_finds_the_same(mode: Mode, net: nn.Module, samples: tuple[Tensor, Tensor]) -> None:
    def found(x: Tensor, y: Tensor) -> Tensor:
        return AutoAttack(net, eps=EPS, verbose=False, **LESS["autoattack"]).run_standard_evaluation(x, y)

    outside = found(*samples)
    with mode():
        inside = found(samples[0].clone(), samples[1].clone())
    assert torch.equal(inside, outside)


def test_an_attack_object_runs_by_itself(net: nn.Module, samples: tuple[Tensor, Tensor]) -> None:
    target, threat = ClassifierTarget(net, num_classes=4, input_shape=(1, 8, 8)), ThreatModel("linf", EPS)
    batch = make_batch(*samples)
    for name in ("pgd", "deepfool"):
        made = plugins.make("attacks", {"kind": name})
        outside = made.run(target, batch, threat, SampleRng(0, batch.index)).adversarial
        with torch.no_grad():
            assert torch.equal(made.run(target, batch, threat, SampleRng(0, batch.index)).adversarial, outside)


def test_a_model_made_in_inference_mode_is_told_so(net: nn.Module, samples: tuple[Tensor, Tensor]) -> None:
    with torch.inference_mode():
        made = copy.deepcopy(net)
        with pytest.raises(TargetError, match=r"made inside torch\.inference_mode") as told:
            robustkd.attack("pgd", made, *samples, eps=EPS)
    assert "copy.deepcopy" in str(told.value)
    again = copy.deepcopy(made)  # the fix that it names
    assert torch.equal(attacked("pgd", again, *samples), attacked("pgd", net, *samples))


CAMPAIGN = tiny_campaign(
    "inside",
    {"plain": "{kind: pgd-at, model: tiny-cnn, epochs: 1, inner: {steps: 1}}"},
    {"pgd": "{kind: pgd, steps: 2}"},
    data="{name: digits, train: 40, validation: 10, test: 10}",
)


def test_a_campaign_in_this_process_trains_and_attacks_alike(tmp_path: Path) -> None:
    def numbers(out: Path) -> list[float | None]:
        made = build(spec.from_text(CAMPAIGN, "inside.yaml", tmp_path))
        return [cell.robust_accuracy for cell in campaigns_run.run(made, out, InlineEngine()).cells]

    outside = numbers(tmp_path / "outside")
    for mode in MODES:
        with mode():
            assert numbers(tmp_path / mode.__name__) == outside
    assert None not in outside


def test_an_error_of_ones_own_leaves_the_callers_mode(net: nn.Module, samples: tuple[Tensor, Tensor]) -> None:
    with torch.inference_mode():
        with pytest.raises(RobustkdError):
            robustkd.attack("unknown", net, *samples)
        assert torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()
