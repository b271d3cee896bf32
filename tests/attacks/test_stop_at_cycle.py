"""PGD and BIM leave a sample when its iterates repeat: they find the same, and say how many passes would have repeated."""

import numpy as np
import pytest
import torch
from torch import nn

import robustkd
from robustkd.checks.trajectory import _gains, _paths
from robustkd.contracts import CheckContext, ThreatModel
from robustkd.evaluation.images import evaluate_attack, evidence_of, make_batch, with_clean_logits
from robustkd.evaluation.suite import _spent
from robustkd.plugins import make
from robustkd.targets import ClassifierTarget

STEPS = 60


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    x = torch.rand(24, 1, 4, 4)
    return net, x, net(x).argmax(1)


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize(
    ("kind", "more"),
    [("pgd", {}), ("pgd", {"restarts": 3}), ("pgd", {"stop_when_broken": False}), ("bim", {}), ("pgd", {"norm": "l2"})],
)
def test_the_same_is_found_with_fewer_passes(problem, kind, more, loss):
    net, x, y = problem
    norm = more.get("norm", "linf")
    params = {name: value for name, value in more.items() if name != "norm"} | {"steps": STEPS, "step_size": 0.01, "loss": loss}
    eps = 0.02 if norm == "linf" else 0.06

    def attacked(stop):
        return robustkd.attack(kind, net, x, y, norm=norm, eps=eps, params=params | {"stop_at_cycle": stop})

    without, found = attacked(False), attacked(True)
    # A batch that has become smaller is multiplied by another kernel on some processors: the last bit may differ.
    torch.testing.assert_close(found.adversarial, without.adversarial, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found.outcome.success, without.outcome.success)
    np.testing.assert_allclose(found.outcome.loss, without.outcome.loss, rtol=1e-5)
    assert without.outcome.skipped is None
    np.testing.assert_array_equal(found.outcome.passes + found.outcome.skipped, without.outcome.passes)
    if norm == "linf":
        assert found.outcome.skipped[found.outcome.standing].mean() > STEPS / 2


def test_a_target_that_draws_random_numbers_is_asked_to_the_end(problem):
    net, x, y = problem

    class Noisy(nn.Module):
        def forward(self, images):
            return net(images) + 0.1 * torch.randn(len(images), 4)

    found = robustkd.attack("pgd", Noisy(), x, y, eps=0.02, steps=STEPS, step_size=0.01, stop_at_cycle=True)
    assert found.outcome.skipped is None


def test_passes_that_would_repeat_count_as_spent(problem):
    net, x, y = problem
    target = ClassifierTarget(net, num_classes=4, input_shape=(1, 4, 4))
    batch, threat = with_clean_logits(target, make_batch(x, y)), ThreatModel("linf", 0.02)

    def evidence(stop):
        attack = make("attacks", {"kind": "pgd", "steps": STEPS, "step_size": 0.01, "stop_at_cycle": stop})
        found = evaluate_attack(target, attack, batch, threat)
        return evidence_of("pgd", attack, threat, found.outcome, found.adversarial.numpy())

    without, found = evidence(False), evidence(True)
    assert found.passes.sum() < without.passes.sum()
    assert _spent(found) == _spent(without) == 2 * STEPS + 1

    def gains(one):
        standing = batch.select(torch.as_tensor(np.flatnonzero(one.standing)))
        return _gains(_paths(CheckContext(target, batch, threat, {"pgd": one}, 0), one, standing))

    np.testing.assert_allclose(gains(found), gains(without), atol=1e-5)
