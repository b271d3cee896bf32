"""Rotations, flows and recolourings from the command, a campaign file and Python: numbers, verdicts and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import robustkd
from robustkd.campaigns.file import spec
from robustkd.contracts import ColourBudget, FlowBudget, PerceptualBudget, SpatialBudget, UsageError
from robustkd.plugin_kit import fixtures

CAMPAIGN = """
version: 1
name: changes
data: {name: digits, train: 200, test: 30}
threat: {rotation: 20, translation: 0.05, curve: [0.5]}
defenses:
  plain: {kind: standard, model: tiny-cnn, epochs: 5, batch_size: 32, lr: 0.05}
attacks:
  control: {kind: rotate-grid, draws: 1}
  grid: {kind: rotate-grid, rotations: 5, translations: 3}
  moved: {kind: stadv, steps: 10, threat: {flow: 0.3}}
  recoloured: {kind: recolor, steps: 10, threat: {colour: 0.2, resolution: 8}}
  pgd: {kind: pgd, threat: {eps: 0.1}}
"""


def test_a_campaign_of_several_kinds_of_change(say, tmp_path: Path) -> None:
    (tmp_path / "changes.yaml").write_text(CAMPAIGN)
    out = tmp_path / "out"
    code, told = say(
        "run", str(tmp_path / "changes.yaml"), "--out", str(out), "--no-track", "--workers", "0", "--device", "cpu"
    )
    assert code == 0, told
    results = json.loads((out / "results.json").read_text())
    assert results["threat"]["norm"] == "spatial(rotation=20.0,translation=0.05,padding=zeros)"
    plain = results["defenses"][0]
    assert plain["robust_accuracy"] <= min(c["robust_accuracy"] for c in results["cells"] if c["attack"] in ("control", "grid"))
    assert set(plain["other_threats"]) == {"flow <= 0.3 pixels", "colour <= 0.2", "linf <= 0.1"}
    assert [point["eps"] for point in plain["curve"]] == [0.5, 1.0]
    by_name = {finding["name"]: finding for finding in plain["checks"]}
    assert all(finding["ran"] for finding in by_name.values())
    assert "in a norm" in by_name["black-box-beats-white-box"]["evidence"]["reason"]
    assert by_name["reference-attack"]["applicable"]
    page = (out / "report.html").read_text()
    assert "rotation &lt;= 20°" in page or "rotation <= 20°" in page


@pytest.mark.parametrize(
    ("threat", "told"),
    [
        ("{rotation: 30, eps: 0.1}", "different budgets"),
        ("{rotation: 30, flow: 1}", "different budgets"),
        ("{padding: edge}", "without a budget"),
        ("{rotation: 200}", "180"),
        ("{rotations: 30}", "unknown key"),
        ("{metric: plain}", "metric without a budget"),
        ("{perceptual: 0.5, flow: 1}", "different budgets"),
        ("{perceptual: 0.5, metric: other}", "refers to the defense 'other'"),
    ],
)
def test_a_threat_block_that_says_two_things_or_none_is_refused(threat, told) -> None:
    with pytest.raises(UsageError, match=told):
        spec.from_text(CAMPAIGN.replace("{rotation: 20, translation: 0.05, curve: [0.5]}", threat), "changes.yaml", Path())


def test_a_pixel_attack_under_such_a_threat_is_left_out_and_a_reason_is_given(say, tmp_path: Path) -> None:
    (tmp_path / "changes.yaml").write_text(CAMPAIGN.replace("pgd: {kind: pgd, threat: {eps: 0.1}}", "pgd: {kind: pgd}"))
    code, told = say("plan", str(tmp_path / "changes.yaml"), "--out", str(tmp_path / "out"))
    assert code == 0, told
    assert "attacks pixels, the threat model is about spatial" in " ".join(told.split())


def test_the_command_attacks_under_it(say, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\ndef build():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    model = ("--model", f"{tmp_path / 'net.py'}:build", "--data", "digits", "--n", "20", "--device", "cpu")
    code, told = say("attack", "rotate-grid", *model, "--threat", "{rotation: 30, translation: 3/32}")
    assert code == 0, told
    assert "under rotate-grid, rotation <= 30°, translation <= 9.375 %" in told
    code, told = say("attack", "rotate-grid", *model, "--threat", "{rotation: 30}", "--out", str(tmp_path / "images/"))
    assert code != 0
    assert "archive" in told
    code, told = say("attack", "rotate-grid", *model, "--threat", "{rotation: 30}", "--out", str(tmp_path / "adv.npz"))
    assert code == 0, told
    code, told = say("attack", "rotate-grid", *model, "--threat", "{rotation: 200}")
    assert code != 0
    assert "correct --threat and run again" in told
    code, told = say("attack", "rotate-grid", *model, "--threat", "{rotation: 30}", "--eps", "0.1")
    assert code == 2
    assert "--eps with --threat" in told


SAMPLES = 24
WEAK = [
    (SpatialBudget(15, 0.05), {"kind": "rotate-grid", "draws": 1}),
    (FlowBudget(0.3), {"kind": "stadv", "steps": 1, "step_size": 0.01}),
    (ColourBudget(0.3, 8), {"kind": "recolor", "steps": 1, "step_size": 0.001}),
    (PerceptualBudget(0.6), {"kind": "perceptual-search", "queries": 1}),
]


@pytest.mark.usefixtures("no_escalation")
@pytest.mark.parametrize(("budget", "attack"), WEAK, ids=str)
def test_one_weak_attack_makes_no_number_credible(budget, attack) -> None:
    data = fixtures.digits().train
    report = robustkd.audit(fixtures.classifier(), data.unit()[:SAMPLES], data.labels[:SAMPLES], attacks=attack, budget=budget)
    found = {finding.name: finding for finding in report.findings}
    assert found["reference-attack"].fired
    assert report.verdict == "not credible"
    assert not [name for name, finding in found.items() if finding.outcome == "not run"]
    assert report.remedy.robust_accuracy < report.robust_accuracy


class _Rounded(nn.Module):
    """A network behind a stage without a gradient."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner((x * 4).round() / 4)


@pytest.mark.usefixtures("no_remedies")
def test_a_gradient_that_is_hidden_is_found_out_without_one() -> None:
    data, network, budget = fixtures.digits().train, _Rounded(fixtures.classifier().module), SpatialBudget(15, 0.05)
    x, y = data.unit()[:SAMPLES], data.labels[:SAMPLES]
    report = robustkd.audit(network, x, y, attacks={"kind": "rotate-pgd", "restarts": 1, "random_start": False}, budget=budget)
    assert report.verdict == "not credible"
    assert {"zero-gradient", "reference-attack"} & {finding.name for finding in report.findings if finding.fired}
