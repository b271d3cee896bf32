"""A target that somebody writes: it declares what the contract names, and owes nothing else."""

import pytest
import torch
from torch import nn

import robustkd
from robustkd.attacks.image.wrappers.eot import MeanTarget
from robustkd.attacks.image.wrappers.transfer import Surrogate
from robustkd.contracts import Batch, Target, ThreatModel
from robustkd.evaluation.images import evaluate_attack
from robustkd.plugins import make
from robustkd.targets import ClassifierTarget, CountedTarget
from robustkd.targets.split import SplitTarget


class Own(Target):
    kind = "own"

    def __init__(self):
        self.module = nn.Flatten()
        self.num_classes, self.input_shape = 16, (1, 4, 4)

    def card(self):
        return {}

    @classmethod
    def from_card(cls, card):
        return cls()

    def __call__(self, inputs):
        return self.module(inputs)


@pytest.fixture
def images():
    x = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return x, x.flatten(1).argmax(1)


@pytest.mark.usefixtures("no_remedies")
def test_it_is_attacked_and_audited(images):
    target = Own()
    assert (target.bounds, target.device) == ((0.0, 1.0), torch.device("cpu"))
    assert robustkd.attack("pgd", target, *images, eps=0.5, steps=5).success.all()
    report = robustkd.audit(target, *images, attacks={"kind": "pgd", "steps": 5}, eps=0.1)
    assert not [finding.name for finding in report.findings if not finding.ran]


WRAPPERS = [lambda t: MeanTarget(t, 2), Surrogate, CountedTarget, lambda t: SplitTarget(t, 3)]


@pytest.mark.parametrize("around", WRAPPERS, ids=["mean", "surrogate", "counted", "split"])
def test_what_is_around_a_target_declares_the_same(around):
    inner = ClassifierTarget(nn.Flatten(), num_classes=16, input_shape=(1, 4, 4), bounds=(-9.0, 9.0))
    for target in (around(inner), around(around(inner))):
        assert (target.bounds, target.num_classes, target.input_shape) == ((-9.0, 9.0), 16, (1, 4, 4))
        assert target.device == inner.device


@pytest.mark.parametrize("kind", ["pgd", "fgsm", "square", "fmn", "deepfool"])
def test_pixels_outside_0_and_1_are_pixels_where_the_target_says_so(kind, images):
    net = ClassifierTarget(nn.Flatten(), num_classes=16, input_shape=(1, 4, 4), bounds=(-1.0, 0.0))
    x = images[0] - 1.0
    batch = Batch(x, x.flatten(1).argmax(1), torch.arange(len(x)))
    found = evaluate_attack(net, make("attacks", {"kind": kind}), batch, ThreatModel("linf", 0.6), seed=0)
    assert found.outcome.success.any()
    assert -1.0 <= float(found.adversarial.min()) < 0
    assert float(found.adversarial.max()) <= 0
