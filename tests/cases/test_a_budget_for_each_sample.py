"""A batch that says more than images and labels: budgets and goals of each sample, which whoever makes another batch of it must keep."""

from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from robustkd import plugins
from robustkd.contracts import Batch, CheckContext, ThreatModel
from robustkd.evaluation.checks import run_checks
from robustkd.evaluation.images import evaluate_attack, evidence_of, make_batch, with_clean_logits
from robustkd.targets import ClassifierTarget, EnsembleTarget

THREAT = ThreatModel("linf", 0.3)
SHAPE = (1, 4, 4)


def network(seed):
    """The class is whether the first pixel is bright; the third class is never the answer."""
    torch.manual_seed(seed)
    linear = nn.Linear(16, 3)
    with torch.no_grad():
        linear.weight.mul_(0.01)
        linear.weight[1, 0] += 1.0
        linear.bias.copy_(torch.tensor([0.5, 0.0, -50.0]))
    return ClassifierTarget(nn.Sequential(nn.Flatten(), linear).eval(), num_classes=3, input_shape=SHAPE)


def samples(target, **more):
    torch.manual_seed(7)
    images = torch.rand(32, *SHAPE) * 0.5 + 0.25
    return with_clean_logits(target, make_batch(images, target(images).argmax(1).detach(), **more))


def found_by(check, batch, target):
    attack = plugins.make("attacks", {"kind": "pgd", "steps": 3})
    found = evaluate_attack(target, attack, batch, THREAT, seed=0)
    evidence = evidence_of("pgd", attack, THREAT, found.outcome, found.adversarial.numpy())
    (finding,) = run_checks(
        CheckContext(target, batch, THREAT, {"pgd": evidence}, 0), [plugins.make("checks", {"kind": check})]
    )
    return finding


def test_a_check_on_rescaled_logits_keeps_each_samples_budget():
    target = network(0)
    finding = found_by("logit-scale-invariance", samples(target, eps=torch.zeros(32)), target)
    assert finding.outcome == "quiet"
    assert finding.evidence["robust_accuracy"] == finding.evidence["robust_accuracy_rescaled"] == 1.0


def test_a_check_by_a_substitute_keeps_each_samples_budget():
    target = network(0)
    finding = found_by("transfer-beats-white-box", samples(target, eps=torch.zeros(32)), target)
    assert finding.outcome == "quiet"
    assert finding.evidence["broken_by_transfer_only"] == 0


@pytest.mark.parametrize("of_each", [{"eps": torch.zeros(32)}, {"goals": torch.full((32,), 2)}], ids=["eps", "goals"])
def test_an_analysis_of_members_keeps_what_each_sample_came_with(of_each):
    ensemble = EnsembleTarget([network(0), network(1)])
    analysis = plugins.make("analyses", {"kind": "transferability", "steps": 3, "restarts": 1})
    free = analysis.run(ensemble, samples(ensemble), THREAT, 0)
    assert min(min(row) for row in free.values) > 0  # budgets and goals are what makes the difference
    bound = analysis.run(ensemble, samples(ensemble, **of_each), THREAT, 0)
    assert bound.values == [[0.0] * 3] * 2


def test_an_analysis_with_a_radius_of_its_own_takes_that():
    ensemble = EnsembleTarget([network(0), network(1)])
    analysis = plugins.make("analyses", {"kind": "transferability", "steps": 3, "restarts": 1, "eps": 0.3})
    assert analysis.run(ensemble, samples(ensemble, eps=torch.zeros(32)), THREAT, 0) == analysis.run(
        ensemble, samples(ensemble), THREAT, 0
    )


def test_every_field_survives_every_way_to_another_batch():
    torch.manual_seed(0)
    batch = Batch(
        torch.rand(5, 2),
        torch.arange(5),
        torch.arange(5),
        logits=torch.rand(5, 3),
        goals=torch.arange(5),
        eps=torch.rand(5),
        draws=torch.arange(10).reshape(5, 2),
        movable=torch.rand(5, 2) > 0.5,
        rejection=2,
    )
    rows = torch.tensor([3, 1])
    for part, wanted in [
        (batch.select(rows), rows),
        (batch.select(slice(1, 3)), torch.tensor([1, 2])),
        (batch.select(batch.labels > 2), torch.tensor([3, 4])),
        (batch.to("cpu"), torch.arange(5)),
    ]:
        assert part.rejection == 2
        for field in fields(Batch):
            if field.name == "rejection":
                continue  # of the target, not of a sample
            assert torch.equal(getattr(part, field.name), getattr(batch, field.name)[wanted]), field.name
    assert replace(batch, logits=None).select(rows).logits is None


def test_what_a_batch_may_lack_is_named():
    with pytest.raises(TypeError):
        Batch(torch.rand(5, 2), torch.arange(5), torch.arange(5), torch.arange(5))
