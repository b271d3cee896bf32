"""Each check fires on its symptom and stays quiet on an honest network."""

import numpy as np
import pytest
import torch
from torch import nn

import robustkd
from robustkd import plugins
from robustkd.contracts import AttackEvidence, Batch, CheckContext, ThreatModel
from robustkd.targets import ClassifierTarget
from support.small_networks import Around

ATTACKS = ["fgsm", {"kind": "pgd", "steps": 10}, {"kind": "pgd", "steps": 10, "loss": "margin"}]


def evaluated(net, digits):
    x, y = digits
    return robustkd.evaluate(net, x[1200:1400], y[1200:1400], attacks=ATTACKS, eps=0.05)


def fired(report):
    return {finding.name for finding in report.findings if finding.fired}


def test_an_honest_network_is_credible(honest, digits):
    report = evaluated(honest, digits)
    assert fired(report) == set()
    assert report.verdict == "credible"
    assert 0 < report.robust_accuracy < report.clean_accuracy
    assert "credible" in str(report)


@pytest.mark.usefixtures("no_remedies")
@pytest.mark.parametrize(
    ("symptom", "after", "before", "verdict"),
    [
        ("output-type", lambda z: z.softmax(1), lambda x: x, None),
        ("output-type", lambda z: z.log_softmax(1), lambda x: x, "suspect"),
        ("randomised-output", lambda z: z, lambda x: x + 0.1 * torch.randn_like(x), "not credible"),
        ("zero-gradient", lambda z: z, lambda x: (x * 4).round() / 4, "not credible"),
        ("zero-gradient", lambda z: z * 1e4, lambda x: x, "not credible"),
        ("logit-scale-invariance", lambda z: z * 1e3, lambda x: x, "not credible"),
        ("loss-disagreement", lambda z: z * 1e3, lambda x: x, "not credible"),
    ],
)
def test_each_symptom_is_found(only_checks, honest, digits, symptom, after, before, verdict):
    only_checks(symptom)
    torch.manual_seed(0)
    report = evaluated(Around(honest, before, after), digits)
    assert symptom in fired(report)
    if verdict:
        assert report.verdict == verdict
    finding = next(finding for finding in report.findings if finding.name == symptom)
    assert finding.evidence
    assert finding.fix


@pytest.mark.usefixtures("no_remedies")
def test_saturation_is_explained_with_both_numbers(only_checks, honest, digits):
    only_checks("loss-disagreement")
    report = evaluated(Around(honest, behind=lambda z: z * 1e3), digits)
    said = next(f for f in report.findings if f.name == "loss-disagreement").evidence
    assert said["robust_accuracy_cross_entropy"] > said["robust_accuracy_margin"] + 0.1
    assert f"{100 * said['robust_accuracy_margin']:.1f} %" in said["explanation"]


def evidence(name, standing, **traits):
    defaults = {"kind": "fixed-budget", "loss_family": "unknown", "gradients": True, "iterative": True}
    standing = np.array(standing, bool)
    distance = np.where(standing, 0.0, traits.pop("distance", 0.1))
    return AttackEvidence(name, **(defaults | traits), threat=ThreatModel("linf", 0.1), correct_before=np.ones_like(standing),
                          standing=standing, distance=distance)  # fmt: skip


def run(check, *attacks, net=None):
    net = net or nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    target = ClassifierTarget(net, num_classes=2, input_shape=(1, 2, 2))
    n = len(attacks[0].standing)
    batch = Batch(torch.rand(n, 1, 2, 2), torch.zeros(n, dtype=torch.long), torch.arange(n), logits=torch.zeros(n, 2))
    return plugins.load("checks", check)().run(
        CheckContext(target, batch, ThreatModel("linf", 0.1), {a.name: a for a in attacks}, 0)
    )


def test_one_step_beats_iterative():
    pgd = evidence("pgd", [1] * 100)
    assert run("one-step-beats-iterative", pgd, evidence("fgsm", [0] * 2 + [1] * 98, iterative=False)).fired
    assert not run("one-step-beats-iterative", pgd, evidence("fgsm", [0] * 1 + [1] * 99, iterative=False)).fired
    assert not run("one-step-beats-iterative", pgd).applicable


def test_black_box_beats_white_box():
    pgd = evidence("pgd", [1] * 1000)
    assert run("black-box-beats-white-box", pgd, evidence("square", [0] * 3 + [1] * 997, gradients=False)).fired
    assert not run("black-box-beats-white-box", pgd, evidence("square", [0] * 2 + [1] * 998, gradients=False)).fired
    few = evidence("pgd", [1] * 60)
    assert not run("black-box-beats-white-box", few, evidence("rays", [0] + [1] * 59, gradients=False)).fired  # one is chance
    assert run("black-box-beats-white-box", few, evidence("rays", [0] * 2 + [1] * 58, gradients=False)).fired
    assert not run("one-step-beats-iterative", few, evidence("fgsm", [0] + [1] * 59, iterative=False)).fired


def test_the_audit_sees_a_broken_budget_and_training_mode():
    assert not run("threat-model-audit", evidence("pgd", [0, 1])).fired
    assert run("threat-model-audit", evidence("pgd", [0, 1], distance=0.2)).evidence["outside"] == ["pgd"]
    assert run("threat-model-audit", evidence("pgd", [0, 1]), net=nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).train()).fired


def test_an_attack_that_breaks_its_contract_gives_no_number(honest, digits):
    from robustkd.contracts import Attack, AttackError, AttackResult
    from robustkd.evaluation.images import evaluate_attack, make_batch, with_clean_logits

    target = ClassifierTarget(honest, num_classes=10, input_shape=(1, 8, 8))
    batch = with_clean_logits(target, make_batch(digits[0][:20], digits[1][:20]))

    def attack_returning(change, harm=lambda: None):
        class Broken(Attack):
            def run(self, target, batch, threat, rng):
                harm()
                found = change(batch.inputs)
                zeros = torch.zeros(len(found), dtype=torch.int64)
                return AttackResult(found, zeros.bool(), zeros, zeros)

        return Broken()

    for change, said in [
        (lambda x: (x + 0.2).clamp(0, 1), "left its budget"),
        (lambda x: x - 0.05, "left the pixel range"),
        (lambda x: x * float("nan"), "NaN or infinite pixels"),
        (lambda x: x[:-1], "returned inputs of shape"),
    ]:
        with pytest.raises(AttackError, match=said):
            evaluate_attack(target, attack_returning(change), batch, ThreatModel("linf", 0.1))

    def harm():
        with torch.no_grad():
            honest[1].bias.add_(1).sub_(1)

    with pytest.raises(AttackError, match="left the model changed"):
        evaluate_attack(target, attack_returning(lambda x: x, harm), batch, ThreatModel("linf", 0.1))


def test_an_attack_s_claim_is_not_believed(honest, digits):
    from robustkd.contracts import Attack, AttackResult
    from robustkd.evaluation.images import evaluate_attack, make_batch, with_clean_logits

    class Boaster(Attack):
        def run(self, target, batch, threat, rng):
            ones = torch.ones(len(batch), dtype=torch.int64)
            return AttackResult(batch.inputs, ones.bool(), ones, ones)

    target = ClassifierTarget(honest, num_classes=10, input_shape=(1, 8, 8))
    batch = with_clean_logits(target, make_batch(digits[0][:20], digits[1][:20]))
    assert not evaluate_attack(target, Boaster(), batch, ThreatModel("linf", 0.1)).outcome.success.any()
