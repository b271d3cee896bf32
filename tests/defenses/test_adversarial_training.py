from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from robustkd.contracts import ThreatModel
from robustkd.defenses.image.trades import TRADESParams, TRADESRecipe
from robustkd.defenses.training import Adversary, Minibatch

EPS = 0.15
Make = Callable[..., Any]
THREAT = ThreatModel(eps=EPS)


def recipe(kind: Any, params: Any, **changes: Any) -> Any:
    p = params(model="tiny-cnn", **changes)
    return kind(Adversary.under(p.inner, THREAT), THREAT, p)


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(1)


# --- TRADES ------------------------------------------------------------------------------------------------------------


def test_trades_loss_is_the_papers_formula(linear: Make, softmax: Make, minibatch: Minibatch) -> None:
    target, r = linear(0), recipe(TRADESRecipe, TRADESParams, beta=4.0)
    loss, measured = r.loss(target, minibatch)
    (x_adv,) = r.given(target, minibatch)
    clean, adversarial = softmax(target(minibatch.x)), softmax(target(x_adv))
    natural = -np.log(clean[np.arange(32), minibatch.y.numpy()]).mean()
    robust = divergence(clean, adversarial).mean()
    assert robust > 0.01
    assert loss.item() == pytest.approx(natural + 4 * robust, rel=1e-5)
    assert (measured["loss_natural"].item(), measured["loss_robust"].item()) == pytest.approx((natural, robust), rel=1e-5)


def test_trades_differentiates_both_sides_of_its_divergence(linear: Make, softmax: Make, minibatch: Minibatch) -> None:
    target, r = linear(0), recipe(TRADESRecipe, TRADESParams, beta=4.0)
    (x_adv,) = r.given(target, minibatch)
    r.outer(target, minibatch, (x_adv,))[0].backward()
    p, q = softmax(target(minibatch.x)), softmax(target(x_adv))
    onehot = np.eye(10)[minibatch.y.numpy()]
    # d KL(p||q) / d z_p = p * (log(p/q) - KL),  d / d z_q = q - p
    to_clean = p - onehot + 4 * p * (np.log(p / q) - divergence(p, q)[:, None])
    x, x_adv = (at.flatten(1).double().numpy() for at in (minibatch.x, x_adv))
    expected = (to_clean.T @ x + 4 * (q - p).T @ x_adv) / 32
    np.testing.assert_allclose(target.module[1].weight.grad.numpy(), expected, atol=1e-6)


def test_trades_climbs_the_divergence_from_the_papers_noise(linear: Make, minibatch: Minibatch) -> None:
    target, r = linear(0), recipe(TRADESRecipe, TRADESParams)
    assert (r.adversary.start, r.adversary.loss, r.adversary.steps) == ("noise", "kl-student-clean", 10)
    assert recipe(TRADESRecipe, TRADESParams, inner={"steps": 3}).adversary.loss == "kl-student-clean"

    def kl_at(x: torch.Tensor) -> float:
        p, q = (target(at).log_softmax(1) for at in (minibatch.x, x))
        return (p.exp() * (p - q)).sum(1).mean().item()

    by_ce = recipe(TRADESRecipe, TRADESParams, inner={"loss": "ce"})
    assert kl_at(r.given(target, minibatch)[0]) > 1.5 * kl_at(by_ce.given(target, minibatch)[0])


def test_a_divergence_from_x_cannot_start_at_x() -> None:
    with pytest.raises(ValidationError, match="no gradient at x' = x"):
        TRADESParams(model="tiny-cnn", inner={"start": "clean"})


def test_without_a_teacher_there_is_no_divergence_from_one() -> None:
    with pytest.raises(ValidationError, match="'ce' or 'kl-student-clean'"):
        TRADESParams(model="tiny-cnn", inner={"loss": "kl-teacher-clean"})
