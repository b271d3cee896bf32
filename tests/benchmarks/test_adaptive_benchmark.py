"""The networks on which AutoAttack's versions part, and the table that tells how far."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import _harness
import adaptive


def linear(slope: float) -> nn.Module:
    """Two classes by the mean of four pixels."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[0.0] * 4, [slope] * 4]))
    return network


def value_and_gradient(network: nn.Module) -> tuple[float, float]:
    x = torch.full((1, 1, 2, 2), 0.51, requires_grad=True)
    value = network(x)[0, 1]
    value.backward()
    assert x.grad is not None
    return value.item(), float(x.grad[0, 0, 0, 0])


def test_each_network_hides_its_gradient_in_the_way_that_its_row_says() -> None:
    assert value_and_gradient(adaptive.Scaled(linear(1.0))) == pytest.approx((2040.0, 1000.0))
    assert value_and_gradient(adaptive.GradientsOfAnother(linear(1.0), linear(-3.0))) == pytest.approx((2.04, -3.0))
    # 0.51 is the fourth of seven steps, from which no gradient comes back.
    assert value_and_gradient(adaptive.Rounded(linear(1.0))) == pytest.approx((16 / 7, 0.0))
    shown = adaptive.WinnersTakeAll()(torch.arange(20.0).view(1, 20))
    assert shown.nonzero()[:, 1].tolist() == [18, 19]


def test_a_row_counts_what_stands_of_each_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_harness, "RESULTS", tmp_path)
    monkeypatch.setattr(adaptive, "BUDGETS", {"linf": 0.5})
    adaptive.main(["--images", "6", "--seeds", "2", "--cases", "as it is"], standalone_mode=False)
    (row,) = json.loads((tmp_path / "adaptive.json").read_text())["rows"]
    # Half of the pixels' range breaks every image of an undefended network, with the first attack of either version.
    assert row["of_seeds"] == {"standard": [0, 0], "adaptive": [0, 0]}
    assert row["images"] == 6
    assert 0 < row["share_of_passes"] <= 1.5
    assert "as it is, linf: [0.0, 0.0] standard, [0.0, 0.0] adaptive" in capsys.readouterr().out
