"""Under a budget in pixels the platform's own attacks and remedies are those that can respect it."""

import pytest
import torch
from torch import nn

import robustkd
from robustkd.contracts import Attack, AttackResult, ThreatModel
from robustkd.evaluation.suite import TargetDiagnostics, escalation, suite_attacks
from robustkd.plugins import make
from support.small_networks import learn


class Idle(Attack):
    """It returns the clean images."""

    norms = ("l0",)
    source = "none"
    loss_family = "cross-entropy"

    def run(self, target, batch, threat, rng):
        none = torch.zeros(len(batch), dtype=torch.bool)
        return AttackResult(batch.inputs, none, none.long() + 1, none.long() + 1)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    x = torch.rand(80, 1, 8, 8)
    y = (x.flatten(1)[:, :32].sum(1) > 16).long()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 3))
    return learn(net, x, y, steps=150).eval(), x, y


def test_an_attack_that_is_too_weak_is_told_with_attacks_in_l0(trained):
    net, x, y = trained
    report = robustkd.audit(net, x, y, attacks=[Idle(Idle.Params())], norm="l0", eps=4, level="standard")
    found = {finding.name: finding for finding in report.findings}
    reference = found["reference-attack"]
    assert reference.fired
    assert {spec["kind"] for spec in reference.remedies} <= {"spgd", "sparse-rs", "distilled-surrogate", "autoattack"}
    assert not any(not finding.ran for finding in found.values()), report.findings
    assert report.remedy is not None
    assert report.remedy.robust_accuracy < 0.5, report.remedy


@pytest.mark.slow
def test_autoattack_in_l0_is_enough_for_the_reference(trained):
    net, x, y = trained
    aa = {"kind": "autoattack", "steps": 5, "queries": 1000}
    report = robustkd.audit(net, x, y, attacks=["spgd", aa], norm="l0", eps=2, level="standard")
    assert not [finding.name for finding in report.findings if finding.fired and finding.severity == "severe"]


@pytest.mark.parametrize("draws", [False, True])
def test_whatever_the_suite_asks_for_in_l0_is_an_attack_in_l0(draws):
    threat = ThreatModel("l0", 3)
    diagnostics = TargetDiagnostics(draws=draws, replaced=("Round",), agreement=0.0)
    specs = [one.spec for one in suite_attacks(diagnostics, threat)] + list(escalation(diagnostics, threat))
    usable = [spec for spec in specs if not make("attacks", spec).refusal(threat)]
    kinds = {spec["kind"] for spec in usable}
    assert kinds == ({"eot", "sparse-rs"} if draws else {"bpda", "spgd", "sparse-rs", "autoattack"})
