"""The passes that the training benchmark compares with are those that the training makes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import training


@pytest.fixture(scope="module")
def setting() -> training.Setting:
    return training.Setting.of("tiny-cnn", "small-cnn", images=16, batch=8, device=torch.device("cpu"))


def forwards(setting: training.Setting, work: str) -> dict[str, int]:
    """Images that each network is shown."""
    shown = {"student": 0, "clean": 0, "robust": 0}
    hooks = []
    for name in shown:

        def count(module: object, arguments: tuple[torch.Tensor], output: torch.Tensor, name: str = name) -> None:
            shown[name] += len(arguments[0])

        hooks.append(getattr(setting, name).module.register_forward_hook(count))
    getattr(setting, work)()
    for hook in hooks:
        hook.remove()
    return shown


def test_both_make_the_same_passes_but_for_the_validation_sample(setting: training.Setting) -> None:
    bare, ours = forwards(setting, "passes"), forwards(setting, "epoch")
    assert bare == {"student": 12 * 16, "clean": 16, "robust": 16}
    assert {name: ours[name] for name in ("clean", "robust")} == {"clean": 16, "robust": 16}
    assert 0 < ours["student"] - bare["student"] <= 12  # one sample: once for accuracy, at most 11 times by PGD-10


def test_the_inner_maximisation_asks_for_no_weight_gradient(setting: training.Setting) -> None:
    assert training.weight_gradients(setting) == 1
