"""Untrained and constant networks: no attack lowers a number that was chance before it, and none of them is credible."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import robustkd
from robustkd import plugins
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.contracts import UsageError
from robustkd.scoring.results import Results
from robustkd.tracking import promote
from support.campaigns import tiny_campaign
from support.small_networks import all_digits

ATTACKS = [{"kind": "pgd", "steps": 2}]
UNTRAINED = [(name, seed) for name in ("small-cnn", "tiny-cnn", "lenet5", "resnet20") for seed in (0, 1, 2)]


@pytest.fixture(scope="module")
def digits():
    return all_digits()


def fired(report, name="not-trained"):
    (finding,) = [finding for finding in report.findings if finding.name == name]
    return finding.severity if finding.fired else None


@pytest.mark.parametrize(("name", "seed"), UNTRAINED)
def test_an_untrained_network_is_not_credible(only_checks, digits, name, seed):
    only_checks("not-trained")
    torch.manual_seed(seed)
    network = plugins.make("models", {"kind": name}).build((1, 8, 8), 10).eval()
    x, y = (part[:100] for part in digits)
    report = robustkd.audit(network, x, y, attacks=ATTACKS, eps=0.02, samples=4)
    assert report.verdict == "not credible"
    assert fired(report) == "severe"


class Constant(nn.Module):
    """Always the same class, with a gradient all the same."""

    def forward(self, x):
        rest = 1e-3 * x.flatten(1)[:, :9].tanh()
        return torch.cat([torch.ones(len(x), 1), rest], 1)


def test_a_constant_network_is_not_credible(digits):
    x, y = (part[:100] for part in digits)
    report = robustkd.evaluate(Constant(), x, y, attacks=ATTACKS, eps=0.1)
    assert report.clean_accuracy == report.robust_accuracy == float((y == 0).double().mean())
    assert report.verdict == "not credible"
    assert fired(report) == "severe"


class Read(nn.Module):
    """Right on the first ``right`` of N samples: their labels are written into them."""

    def __init__(self, right):
        super().__init__()
        self.right = right

    def forward(self, x):
        label, place = (x[:, 0, 0, at] * 1000 for at in (0, 1))
        answer = torch.where(place < self.right, label, (label + 1) % 10)
        return -10 * (answer[:, None] - torch.arange(10)).square() / 100


def written(labels):
    x = torch.full((len(labels), 1, 8, 8), 0.5)
    x[:, 0, 0, 0], x[:, 0, 0, 1] = labels / 1000, torch.arange(len(labels)) / 1000
    return x


@pytest.mark.parametrize(
    ("n", "right", "expected"),
    [
        (20, 19, None),  # few samples are no fault of a good network
        (20, 12, None),
        (20, 7, "warning"),  # 35 % of 20: a skill of 0.28, of which 20 samples say no more than that it is above 0.03
        (60, 21, None),  # of 60 they do
        (60, 8, "severe"),
        (1000, 180, "severe"),
        (1000, 220, None),
    ],
)
def test_what_few_samples_can_say(only_checks, n, right, expected):
    only_checks("not-trained")
    labels = torch.arange(n) % 10
    report = robustkd.audit(Read(right), written(labels), labels, attacks=["fgsm"], eps=1e-6, samples=4)
    assert report.clean_accuracy == right / n
    assert fired(report) == expected
    (finding,) = [finding for finding in report.findings if finding.name == "not-trained"]
    assert f"{n}" in finding.evidence["explanation"]


def test_samples_of_one_class_cannot_tell(only_checks):
    only_checks("not-trained")
    labels = torch.full((30,), 3)
    assert fired(robustkd.evaluate(Read(30), written(labels), labels, attacks=["fgsm"], eps=1e-6)) == "warning"


def test_a_campaign_of_a_barely_trained_network_is_not_credible_and_not_promoted(tmp_path):
    text = tiny_campaign("rubbish", {"barely": "{kind: standard, model: small-cnn, epochs: 1}"}, train=40, test=60, checks=None)
    plan = planning.build(spec.from_text(text, "test.yaml", tmp_path))
    (row,) = run(plan, tmp_path / "out", InlineEngine(), device="cpu", observers=[]).defenses
    assert row.verdict == "not credible"
    results = Results.from_dict(json.loads((tmp_path / "out" / "results.json").read_text()))
    with pytest.raises(UsageError, match="not-trained"):
        promote(tmp_path / "out", results, "barely")
