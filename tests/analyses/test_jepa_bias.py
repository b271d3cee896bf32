"""JEPA's bias: the closed forms against gradient descent on real layers, the order of learning, and what a network attends to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from robustkd import plugins
from robustkd.analyses.jepa_bias import influence_ratio, jepa_time, mae_time, moments, sensitivity, simulation_error
from robustkd.contracts import ThreatModel
from robustkd.plugin_kit import fixtures
from robustkd.targets import ClassifierTarget


def descended(lam: float, rho: float, depth: int, begin: float, end: float, objective: str, rate: float) -> float:
    """The time at which gradient descent on ``depth`` scalar layers and a predictor has brought their product to ``end``."""
    layers = [torch.tensor(begin ** (1 / depth), dtype=torch.float64, requires_grad=True) for _ in range(depth + 1)]
    variance, steps = lam / rho, 0
    while True:
        w = torch.stack(layers[:depth]).prod()
        if float(w) >= end:
            return steps * rate
        predictor = layers[depth]
        wanted = w.detach() if objective == "jepa" else torch.ones((), dtype=torch.float64)
        # Half the expected squared error: E (v w x - c y)^2 = v^2 w^2 var - 2 v w c lam + ..
        loss = ((predictor * w) ** 2 * variance - 2 * predictor * w * wanted * lam) / 2
        gradients = torch.autograd.grad(loss, layers)
        with torch.no_grad():
            for layer, gradient in zip(layers, gradients, strict=True):
                layer -= rate * gradient
        steps += 1


@pytest.mark.parametrize("objective", ["jepa", "mae"])
def test_the_closed_form_is_the_time_of_gradient_descent(objective: str) -> None:
    lam, rho, depth, begin = 0.8, 0.7, 2, 0.05
    end = 0.5 * rho ** (depth if objective == "jepa" else depth / (depth + 1))
    time = (jepa_time if objective == "jepa" else mae_time)(lam, rho, depth, begin, end)
    assert descended(lam, rho, depth, begin, end, objective, 0.02) == pytest.approx(time, rel=0.03)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_the_closed_forms_are_those_of_the_equations(depth: int) -> None:
    lam, rho = np.array([1.0, 0.3, 0.5]), np.array([0.4, 0.9, 0.6])
    begin = 0.1 * float((rho**depth).min())
    jepa = np.array([jepa_time(a, b, depth, begin, 0.5 * b**depth) for a, b in zip(lam, rho, strict=True)])
    mae = np.array([mae_time(a, b, depth, begin, 0.5 * b ** (depth / (depth + 1))) for a, b in zip(lam, rho, strict=True)])
    assert simulation_error(lam, rho, depth, begin, jepa, mae) < 1e-2
    assert simulation_error(lam, rho, depth, begin, 1.1 * jepa, mae) > 2e-2


def test_jepa_learns_what_is_predictable_first_and_mae_what_is_large() -> None:
    """A large noisy direction and a small clean one: the deeper the encoder, the stronger the preference."""
    depth, noisy, clean = 4, (1.0, 0.3), (0.6, 0.9)
    begin = 0.05 * noisy[1] ** depth
    jepa = {of: jepa_time(*of, depth, begin, 0.5 * of[1] ** depth) for of in (noisy, clean)}
    mae = {of: mae_time(*of, depth, begin, 0.5 * of[1] ** (depth / (depth + 1))) for of in (noisy, clean)}
    reached = {of: jepa_time(*of, depth, begin, 0.5 * noisy[1] ** depth) for of in (noisy, clean)}
    assert reached[clean] < reached[noisy]  # the same height
    assert mae[noisy] < mae[clean]
    assert all(time > 0 for time in (*jepa.values(), *mae.values()))


def test_moments_are_those_of_two_noisy_views() -> None:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(200_000, 2)) * np.array([2.0, 1.0])
    x, y = (signal + rng.normal(size=signal.shape) * np.array([1.0, 3.0]) for _ in range(2))
    lam, rho = moments(x, y)
    assert lam == pytest.approx([4.0, 1.0], rel=0.05)
    assert rho == pytest.approx([4 / 5, 1 / 10], rel=0.05)


def test_sensitivity_is_the_length_of_the_features_change() -> None:
    """Features (x_0, 10): along x_0 the unit vector turns by 100 / (x_0^2 + 100)^(3/2) * sqrt(x_0^2 + 100), along x_1 not at all."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 2), nn.Linear(2, 2))
    net[1].weight.data = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    net[1].bias.data = torch.tensor([0.0, 10.0])
    target = ClassifierTarget(net, num_classes=2, input_shape=(1, 1, 3))
    moved = sensitivity(target, torch.tensor([[[[2.0, 0.0, 0.0]]]]), np.eye(3)[:2])
    assert moved[0] == pytest.approx(10 / 104, rel=1e-2)
    assert moved[1] == 0
    assert influence_ratio(np.array([1.0, 2.0, 8.0]), np.array([0.1, 0.5, 0.9])) == pytest.approx(1 / 8)


def test_the_table_tells_the_directions_of_a_trained_network() -> None:
    target = fixtures.classifier()
    analysis = plugins.make("analyses", {"kind": "jepa-bias", "directions": 4, "samples": 10})
    table = analysis.run(target, fixtures.batch(target), ThreatModel(eps=0.1), 0)
    assert len(table.rows) == len(table.values) == 4
    assert table.metrics["simulation_error"] < 1e-2
    assert {"influence_ratio", "influence_ratio_untrained", "rank_correlation_with_rho", "chance"} <= set(table.metrics)
    assert all(0 < row[1] < 2 for row in table.values)
    assert analysis.run(target, fixtures.batch(target), ThreatModel(eps=0.1), 0) == table
    some = plugins.make("analyses", {"kind": "jepa-bias", "samples": 3, "noise": 0.01})
    assert len(some.run(target, fixtures.batch(target), ThreatModel(eps=0.1), 0).rows) == 2
