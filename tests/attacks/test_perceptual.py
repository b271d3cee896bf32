"""Perceptual distances: computed by hand, bounded by every attack, and where the features are linear, attacked as well as can be."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import robustkd
from robustkd.attacks.image.transforms.perceptual.ppgd import conjugate_gradients
from robustkd.contracts import Attack, AttackError, AttackResult, PerceptualBudget, TargetError, ThreatModel, UsageError
from robustkd.evaluation.images import evaluate_attack
from robustkd.plugin_kit import fixtures
from robustkd.targets.features import LayerFeatures, with_perceptual_features

BUDGET = PerceptualBudget(0.35)
ATTACKS = ("lpa", "ppgd", {"kind": "perceptual-search", "queries": 30})


@pytest.fixture(scope="module")
def samples() -> tuple[np.ndarray, np.ndarray]:
    """Twenty digits and their labels."""
    data = fixtures.digits().train
    return data.unit()[:20], data.labels[:20]


def test_the_distance_is_that_of_a_computation_by_hand(samples):
    target, x = fixtures.classifier(), torch.from_numpy(samples[0][:4])
    other = torch.from_numpy(samples[0][4:8])
    budget = with_perceptual_features(ThreatModel(budget=PerceptualBudget(1.0, layers=("relu1", "linear"))), target).budget
    state = {name: value.double().numpy() for name, value in target.module.state_dict().items()}

    def convolved(image: np.ndarray, name: str) -> np.ndarray:
        padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
        size = image.shape[1] // 2
        patches = [padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] for i in range(size) for j in range(size)]
        values = [np.tensordot(state[f"{name}.weight"], patch, 3) + state[f"{name}.bias"] for patch in patches]
        return np.maximum(np.stack(values, 1).reshape(-1, size, size), 0)

    def features(image: np.ndarray) -> np.ndarray:
        first = convolved(image.astype(float), "conv1")
        logits = state["linear.weight"] @ convolved(first, "conv2").ravel() + state["linear.bias"]
        places = first.shape[1] * first.shape[2]
        return np.concatenate(
            [(first / np.linalg.norm(first, axis=0) / np.sqrt(places)).ravel(), logits / np.linalg.norm(logits)]
        )

    by_hand = [np.linalg.norm(features(a) - features(b)) for a, b in zip(x.numpy(), other.numpy(), strict=True)]
    assert budget.distance(x, other, {}).numpy() == pytest.approx(by_hand, abs=1e-5)
    assert float(budget.distance(x, x, {}).max()) == 0


def test_the_layers_that_are_chosen_are_told(samples, caplog):
    target, x = fixtures.classifier(), torch.from_numpy(samples[0][:3])
    with caplog.at_level(logging.INFO):
        chosen = LayerFeatures(target)(x)
    assert "conv2, linear" in caplog.text
    named = LayerFeatures(target, ("relu1", "flatten"))(x)  # what these two are given
    assert torch.allclose(chosen, named)
    with pytest.raises(TargetError, match="no layer 'conv9'"):
        LayerFeatures(target, ("conv9",))


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_every_result_is_within_the_bound_and_the_pixel_range(attack, samples):
    report = robustkd.attack(attack, fixtures.classifier(), *samples, budget=BUDGET)
    target = fixtures.classifier()
    budget = with_perceptual_features(ThreatModel(budget=BUDGET), target).budget
    spent = budget.distance(torch.from_numpy(samples[0]), report.adversarial, {})
    assert float(spent.max()) <= BUDGET.eps
    assert 0 <= float(report.adversarial.min()) <= float(report.adversarial.max()) <= 1
    assert report.outcome.success.any()


def test_lpa_breaks_more_than_its_control(samples):
    broken = {
        str(attack): robustkd.attack(attack, fixtures.classifier(), *samples, budget=BUDGET).outcome.success.sum()
        for attack in ("lpa", "ppgd", {"kind": "perceptual-search", "queries": 1, "restarts": 10})
    }
    lpa, ppgd, control = broken.values()
    assert lpa >= ppgd > control
    assert lpa >= 3 * control


@pytest.mark.parametrize("attack", ["lpa", "ppgd"])
@pytest.mark.parametrize(("share", "breaks"), [(0.98, False), (1.1, True)])
def test_between_linear_features_and_a_linear_network_the_bound_that_breaks_is_known(attack, share, breaks):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.eye(16) + 0.3 * torch.randn((16, 16), generator=generator)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.randn((2, 16), generator=generator))
    x = 0.5 + 0.02 * torch.randn((3, 1, 4, 4), generator=generator)
    logits = network(x).detach()
    y, slope = logits.argmax(1), (network[1].weight[0] - network[1].weight[1]).detach()
    # max slope . d subject to ||A d|| <= eps is eps * sqrt(slope^T (A^T A)^-1 slope)
    rate = (slope @ torch.linalg.solve(matrix.T @ matrix, slope)).sqrt()
    eps = (logits[:, 0] - logits[:, 1]).abs() / rate
    for row in range(3):
        budget = PerceptualBudget(share * float(eps[row]), "linear", features=lambda images: images.flatten(1) @ matrix.T)
        given = {"kind": attack, "noise": 0.0, **({"rounds": 8} if attack == "lpa" else {"iterations": 16})}
        report = robustkd.attack(given, network, x[row : row + 1], y[row : row + 1], budget=budget)
        assert bool(report.outcome.success[0]) is breaks


def test_conjugate_gradients_solve_each_samples_own_system():
    generator = torch.Generator().manual_seed(1)
    factors = torch.randn((3, 5, 5), generator=generator).double()
    matrices, right = factors @ factors.mT, torch.randn((3, 5), generator=generator).double()
    found = conjugate_gradients(lambda v: torch.einsum("nij,nj->ni", matrices, v), right, 5)
    assert torch.allclose(found, torch.linalg.solve(matrices, right))


class _Reckless(Attack):
    """Returns other samples' images for the first ``count`` samples."""

    name, space, version, source = "reckless", "perceptual", "1", "none"
    count = 0

    def run(self, target, batch, threat, rng):
        found = batch.inputs.clone()
        found[: self.count] = batch.inputs.roll(1, 0)[: self.count]
        none = torch.zeros_like(batch.labels)
        return AttackResult(found, torch.ones_like(none, dtype=torch.bool), none, none)


def test_a_result_outside_the_bound_is_refused_by_the_platforms_own_measurement():
    target, attack = fixtures.classifier(), _Reckless()
    batch = fixtures.batch(target)
    attack.count = len(batch)
    with pytest.raises(AttackError, match="left its budget") as refused:
        evaluate_attack(target, attack, batch, ThreatModel(budget=BUDGET))
    assert "budget.distance" in str(refused.value.fix)
    attack.count = 1
    with pytest.raises(AttackError, match="left its budget"):  # one that is grossly outside
        evaluate_attack(target, attack, batch, ThreatModel(budget=BUDGET))
    far = evaluate_attack(target, attack, batch, ThreatModel(budget=replace(BUDGET, eps=0.7)))
    assert far.outcome.distance[0] > 0.7
    assert not far.outcome.success[0]


def test_the_network_that_measures_is_another_one_by_name(samples):
    other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 3)).train()
    budget = PerceptualBudget(0.3, "eyes")
    report = robustkd.attack("lpa", fixtures.classifier(), *samples, budget=budget, models={"eyes": other})
    assert other.training
    features = LayerFeatures(fixtures.classifier().__class__(other, num_classes=3, input_shape=(1, 8, 8)))
    x = torch.from_numpy(samples[0])
    with torch.no_grad():
        spent = (features(report.adversarial) - features(x)).norm(dim=1)
    assert np.allclose(spent, report.outcome.distance, atol=1e-5)
    with pytest.raises(UsageError, match="not handed over"):
        robustkd.attack("lpa", fixtures.classifier(), *samples, budget=budget)


def test_a_network_that_draws_random_numbers_is_no_measure_of_itself(samples):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = fixtures.classifier().module

        def forward(self, x):
            return self.inner(x + 0.1 * torch.randn_like(x))

    with pytest.raises(UsageError, match="draws random numbers"):
        robustkd.attack("lpa", Noisy(), *samples, budget=BUDGET)


def test_the_stored_name_gives_the_budget_back():
    for budget in (BUDGET, PerceptualBudget(0.2, "eyes", ("layer1.0", "layer2"))):
        assert ThreatModel.stored(*budget.stored).budget == budget
    with pytest.raises(UsageError, match="of a metric or a layer"):
        PerceptualBudget(0.2, "a,b")
