"""One network written twice, with logits and with a softmax at its end: everything made from it is the same, and it is said."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import robustkd
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.store.store import Store
from robustkd.targets import ClassifierTarget, load_target
from robustkd.targets.logits import as_logits
from support.campaigns import FGSM, tiny_campaign
from support.small_networks import all_digits, learn

MODEL = """
import torch
from torch import nn

def logits(sharp=1.0):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        network[1].weight.copy_(torch.load({weights!r}) * sharp)
        network[1].bias.zero_()
    return network

def soft(sharp=1.0):
    return nn.Sequential(logits(sharp), nn.Softmax(1))

def log(sharp=1.0):
    return nn.Sequential(logits(sharp), nn.LogSoftmax(1))
"""
STUDENT = "student: tiny-cnn, epochs: 4, batch_size: 20, selection: last"
KINDS = {
    "kd": "{{kind: kd, teacher: {0}, {1}}}",
    "rslad": "{{kind: rslad, teacher: {0}, {1}, inner: {{steps: 2}}}}",
    "mtard": "{{kind: mtard, teachers: {{clean: {0}, robust: {0}}}, {1}, inner: {{steps: 2}}}}",
    "ensemble": "{{kind: ensemble, members: [{0}]}}",
}


@pytest.fixture(scope="module")
def digits():
    return all_digits()


@pytest.fixture(scope="module")
def weights(digits):
    """Of a linear network that has learned the digits."""
    torch.manual_seed(0)
    x, y = digits
    return learn(nn.Linear(64, 10, bias=False), x.flatten(1), y, lr=0.05).weight.detach()


def run_it(folder, weights, forms, kinds, attacks, checks):
    torch.save(weights, folder / "w.pt")
    (folder / "m.py").write_text(MODEL.format(weights=str(folder / "w.pt")))
    defenses = {form: f"{{kind: external, code: m.py:{form}}}" for form in forms}
    defenses |= {f"{kind}_{form}": KINDS[kind].format(form, STUDENT) for form in forms for kind in kinds}
    text = tiny_campaign("soft", defenses, attacks, test=40, eps=0.05, checks=checks)
    plan = planning.build(spec.from_text(text, "soft.yaml", folder))
    return plan, run(plan, folder / "out", InlineEngine(), device="cpu", observers=[])


@pytest.fixture(scope="module")
def ran(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("soft")
    attacks = {
        "pgd": "{kind: pgd, steps: 5}",
        "transfer": "{kind: transfer, surrogates: soft, attacks: {kind: pgd, steps: 5}}",
        "from-logits": "{kind: transfer, surrogates: logits, attacks: {kind: pgd, steps: 5}}",
    }
    plan, results = run_it(folder, weights, ("logits", "soft", "log"), KINDS, attacks, "none")
    store, trained = Store(folder / "out"), {}
    for entry in map(store.get, store.ids()):
        if entry.meta.kind == "train":
            trained[entry.meta.defense] = load_target(entry.folder, plan.campaign.code)
    return results, trained


@pytest.mark.parametrize("kind", [*KINDS])
@pytest.mark.parametrize("form", ["soft", "log"])
def test_what_is_made_from_it_is_the_same(ran, digits, kind, form):
    results, trained = ran
    x = digits[0][:100]
    with torch.no_grad():
        expected, found = (trained[f"{kind}_{each}"](x).softmax(1) for each in ("logits", form))
    assert torch.allclose(expected, found, atol=2e-3)
    rows = {row.defense: row for row in results.defenses}
    assert abs(rows[f"{kind}_{form}"].robust_accuracy - rows[f"{kind}_logits"].robust_accuracy) <= 1 / 40


def test_attacked_itself_and_as_a_surrogate_it_is_the_same(ran):
    cells = {(cell.defense, cell.attack): cell.robust_accuracy for cell in ran[0].cells}
    assert cells["soft", "pgd"] == cells["logits", "pgd"]
    assert cells["soft", "pgd"] < 1
    for defense in ("kd_logits", "kd_soft", "logits"):
        assert cells[defense, "transfer"] == cells[defense, "from-logits"]


def test_it_is_said_of_the_model_its_students_and_in_the_log(only_checks, weights, tmp_path, caplog):
    only_checks("output-type")
    kinds = ("kd", "ensemble")
    with caplog.at_level(logging.WARNING, "robustkd"):
        _, results = run_it(tmp_path, weights, ("logits", "soft"), kinds, FGSM, "{samples: 4}")
    said = {row.defense: next(f for f in row.checks if f.name == "output-type") for row in results.defenses}
    assert "the model returns probabilities" in said["soft"].explanation
    for kind in kinds:
        assert "'soft' returns probabilities" in said[f"{kind}_soft"].explanation
        assert said[f"{kind}_soft"].fired
        assert not said[f"{kind}_logits"].fired
    assert "returns probabilities; their logarithm takes the place of its logits" in caplog.text


@pytest.mark.usefixtures("no_remedies")
def test_probabilities_that_float32_has_rounded_to_0_are_told(only_checks, digits, weights):
    only_checks("output-type")
    x, y = (part[:60] for part in digits)
    for sharp, severity in ((1.0, "info"), (100.0, "warning")):
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False), nn.Softmax(1))
        network[1].weight.data = weights * sharp
        report = robustkd.evaluate(network, x, y, attacks=[{"kind": "pgd", "steps": 5}], eps=0.05)
        (finding,) = [finding for finding in report.findings if finding.name == "output-type"]
        assert (finding.fired, finding.severity) == (True, severity)
        assert ("rounded to 0" in finding.explanation) == (severity == "warning")


def test_python_attacks_the_logarithm(digits, weights):
    x, y = (part[:60] for part in digits)
    found = []
    for end in (nn.Identity(), nn.Softmax(1)):
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False), end)
        network[1].weight.data = weights
        found.append([robustkd.attack({"kind": kind}, network, x, y, eps=0.05).robust_accuracy for kind in ("pgd", "apgd-dlr")])
    assert found[0] == found[1]


def test_logits_are_left_as_they_are():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    target = ClassifierTarget(network, num_classes=10, input_shape=(1, 8, 8))
    assert as_logits(target, "it") is target
