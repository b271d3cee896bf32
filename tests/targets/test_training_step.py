"""The steps that trainings are made of, against gradient descent on a parabola, whose course is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustkd.targets.training import adam, adamw, fit, sgd, training_step


def test_each_loss_is_computed_with_the_weights_that_the_step_before_has_left() -> None:
    """Down w^2 / 2, a step of rate r leaves (1 - r) w."""
    weight, rates, seen = nn.Parameter(torch.tensor(1.0, dtype=torch.float64)), [0.5, 0.1, 0.9], []

    def losses():
        for _ in rates:
            seen.append(weight.item())
            yield weight**2 / 2

    fit(sgd([weight], lr=123.0), losses(), rates.__getitem__)
    assert seen == pytest.approx([1.0, 0.5, 0.45])
    assert weight.item() == pytest.approx(0.045)


@pytest.mark.parametrize("rule", [adam, adamw])
def test_the_first_step_of_adam_is_as_long_as_its_rate(rule) -> None:
    weight = nn.Parameter(torch.tensor([3.0, -2.0], dtype=torch.float64))
    fit(rule([weight], lr=1.0), (weight.square().sum() for _ in range(1)), lambda step: 0.25)
    assert weight.tolist() == pytest.approx([2.75, -1.75])


def test_a_step_whose_loss_raises_moves_nothing() -> None:
    weight = nn.Parameter(torch.tensor(1.0))
    optimiser = sgd([weight], lr=1.0, momentum=0.9)

    def backward() -> None:
        weight.sum().backward()
        raise ValueError("no number")

    with pytest.raises(ValueError, match="no number"):
        training_step(optimiser, 1.0, backward)
    assert weight.item() == 1.0
