from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from robustkd.attacks.image.engine.ball import Ball
from robustkd.contracts import ThreatModel
from robustkd.defenses.image.adversarial.fast import Fast, FastParams, FastRecipe
from robustkd.defenses.image.adversarial.free import Free, FreeParams, FreeRecipe
from robustkd.defenses.image.adversarial.mart import MART, MARTParams, MARTRecipe, boosted_cross_entropy
from robustkd.defenses.image.adversarial.pgd_at import PGDAT, PGDATParams, PGDATRecipe
from robustkd.defenses.image.adversarial.trades import TRADES, TRADESParams, TRADESRecipe
from robustkd.defenses.training import AdversarialRecipe, Adversary, InnerMaximisation, Minibatch
from robustkd.defenses.training.awp import perturbed
from robustkd.defenses.training.selection import Validation

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
    (x_adv,) = r.inner(target, minibatch)
    clean, adversarial = softmax(target(minibatch.x)), softmax(target(x_adv))
    natural = -np.log(clean[np.arange(32), minibatch.y.numpy()]).mean()
    robust = divergence(clean, adversarial).mean()
    assert robust > 0.01
    assert loss.item() == pytest.approx(natural + 4 * robust, rel=1e-5)
    assert (measured["loss_natural"].item(), measured["loss_robust"].item()) == pytest.approx((natural, robust), rel=1e-5)


def test_trades_differentiates_both_sides_of_its_divergence(linear: Make, softmax: Make, minibatch: Minibatch) -> None:
    target, r = linear(0), recipe(TRADESRecipe, TRADESParams, beta=4.0)
    (x_adv,) = r.inner(target, minibatch)
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
    assert kl_at(r.inner(target, minibatch)[0]) > 1.5 * kl_at(by_ce.inner(target, minibatch)[0])


def test_a_divergence_from_x_cannot_start_at_x() -> None:
    with pytest.raises(ValidationError, match="no gradient at x' = x"):
        TRADESParams(model="tiny-cnn", inner={"start": "clean"})


def test_without_a_teacher_there_is_no_divergence_from_one() -> None:
    with pytest.raises(ValidationError, match="'ce' or 'kl-student-clean'"):
        TRADESParams(model="tiny-cnn", inner={"loss": "kl-teacher-clean"})


# --- MART --------------------------------------------------------------------------------------------------------------


def test_mart_loss_is_the_papers_formula(linear: Make, softmax: Make, minibatch: Minibatch) -> None:
    target, r = linear(0, scale=5), recipe(MARTRecipe, MARTParams, beta=3.0)
    loss, measured = r.loss(target, minibatch)
    (x_adv,) = r.inner(target, minibatch)
    p, q = softmax(target(minibatch.x)), softmax(target(x_adv))
    rows, y = np.arange(32), minibatch.y.numpy()
    others = q.copy()
    others[rows, y] = 0
    boosted = (-np.log(q[rows, y]) - np.log(1 - others.max(1))).mean()
    robust = (divergence(p, q) * (1 - p[rows, y])).mean()
    assert loss.item() == pytest.approx(boosted + 3 * robust, rel=1e-5)
    assert (measured["loss_boosted"].item(), measured["loss_robust"].item()) == pytest.approx((boosted, robust), rel=1e-5)
    assert (r.adversary.loss, r.adversary.start, MARTParams(model="tiny-cnn").beta) == ("ce", "noise", 5.0)


def test_boosted_cross_entropy_is_exact_where_probabilities_are_not() -> None:
    logits = torch.tensor([[0.0, 60.0, -5.0], [60.0, 0.0, -5.0]], dtype=torch.float32, requires_grad=True)
    value = boosted_cross_entropy(logits, torch.tensor([0, 0]))
    # -log p_y = 60 and -log(1 - p_rival) = 60 - log(1 + e^-5);  0 and e^-60
    np.testing.assert_allclose(value.detach().numpy(), [120 - np.log1p(np.exp(-5)), 0], atol=1e-5)
    value.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 0].item() == pytest.approx(-2 + 1 / (1 + np.exp(5)), abs=1e-5)


# --- weight perturbation -----------------------------------------------------------------------------------------------


def test_the_perturbed_network_is_the_papers_step_away(tiny: Make, minibatch: Minibatch) -> None:
    target = tiny()
    target.module.body.train()  # BatchNorm's batch statistics; without dropout, so that a pass can be repeated
    target.module.head.eval()
    state = {name: tensor.clone() for name, tensor in target.module.state_dict().items()}

    def loss(at: Any) -> torch.Tensor:
        return F.cross_entropy(at(minibatch.x), minibatch.y)

    moved = perturbed(target, loss, gamma=0.05)
    for name, tensor in target.module.state_dict().items():
        assert torch.equal(tensor, state[name]), name  # neither weights nor statistics
    by_hand = tiny()
    by_hand.module.body.train()
    by_hand.module.head.eval()
    loss(by_hand).backward()
    with torch.no_grad():
        for weight in by_hand.module.parameters():
            assert weight.grad is not None
            if weight.dim() > 1:
                weight.add_(0.05 * weight.norm() / weight.grad.norm() * weight.grad)
    torch.testing.assert_close(loss(moved), loss(by_hand))
    assert loss(moved) > loss(target)
    # The gradient that reaches w is the one at w + v.
    by_hand.module.zero_grad()
    loss(by_hand).backward()
    expected = [weight.grad for weight in by_hand.module.parameters()]
    found = torch.autograd.grad(loss(moved), list(target.module.parameters()))
    torch.testing.assert_close(list(found), expected)


def test_weight_perturbation_waits_for_its_warmup_and_is_taken_at_the_same_examples(linear: Make, minibatch: Minibatch) -> None:
    target = linear(0)
    late, now = (recipe(PGDATRecipe, PGDATParams, awp={"gamma": 0.1, "warmup": epochs}) for epochs in (2, 1))
    plain = recipe(PGDATRecipe, PGDATParams).loss(target, minibatch)[0]
    assert late.loss(target, minibatch)[0].item() == plain.item()  # the minibatch is of epoch 1
    assert now.loss(target, minibatch)[0].item() > plain.item() + 0.01
    given = now.inner(target, minibatch)
    moved = perturbed(target, lambda at: now.outer(at, minibatch, given)[0], 0.1)
    assert now.loss(target, minibatch)[0].item() == now.outer(moved, minibatch, given)[0].item()


# --- fast and free -----------------------------------------------------------------------------------------------------


def test_fast_takes_one_long_step_from_a_random_point(linear: Make, minibatch: Minibatch) -> None:
    target, r = linear(0), recipe(FastRecipe, FastParams)
    (x_adv,) = r.inner(target, minibatch)
    start = Ball.around(minibatch.x, EPS, "linf", (0.0, 1.0)).random_point(minibatch.rng("inner")).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(target(start), minibatch.y), start)
    stepped = start.detach() + 1.25 * EPS * gradient.sign()
    torch.testing.assert_close(x_adv, torch.clamp((stepped - minibatch.x).clamp(-EPS, EPS) + minibatch.x, 0, 1))
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        FastParams(model="tiny-cnn", inner={"steps": 2})


@pytest.mark.parametrize("selection", ["best", "last"])
def test_fast_stops_when_it_overfits_and_deploys_what_was_before(
    context: Make, curve: Make, monkeypatch: pytest.MonkeyPatch, same_weights: Make, selection: str
) -> None:
    scores = {"course": [0.3, 0.5, 0.45, 0.05, 0.6], "seen": []}

    def scripted(self: Validation, target: Any) -> dict[str, float]:
        scores["seen"].append({name: tensor.clone() for name, tensor in target.module.state_dict().items()})
        return {"validation_accuracy": 0.9, "validation_robust_accuracy": scores["course"][len(scores["seen"]) - 1]}

    monkeypatch.setattr(Validation, "measure", scripted)
    p = FastParams(model="tiny-cnn", epochs=5, batch_size=128, selection=selection)
    log, again = curve(), curve()
    target = Fast(p).fit(context(log=log))
    assert log.epochs == [0, 1, 2, 3]
    deployed = scores["seen"][{"best": 1, "last": 2}[selection]]
    assert all(torch.equal(tensor, deployed[name]) for name, tensor in target.module.state_dict().items())
    # Run again, it is over: no fifth epoch.
    assert same_weights(target, Fast(p).fit(context(log=again)))
    assert again.epochs == [0, 1, 2, 3]


def test_free_moves_weights_and_perturbation_by_one_pass(linear: Make, minibatch: Minibatch) -> None:
    target, p = linear(0), FreeParams(model="tiny-cnn", batch_size=40, replays=3)
    r = FreeRecipe(Adversary.under(InnerMaximisation(), THREAT), THREAT, p, torch.zeros(1, 8, 8))
    assert r.replays == 3
    x, delta = minibatch.x, torch.zeros_like(minibatch.x)
    for _ in range(4):
        loss, _ = r.loss(target, minibatch)
        target.module.zero_grad()
        loss.backward()
        r.after_step({"train_loss": loss.item()})
        moving = delta.clone().requires_grad_()
        at = (x + moving).clamp(0, 1)
        expected = F.cross_entropy(target(at), minibatch.y)
        weight_gradient, gradient = torch.autograd.grad(expected, [target.module[1].weight, moving])
        assert loss.item() == expected.item()
        torch.testing.assert_close(target.module[1].weight.grad, weight_gradient)
        delta = (delta + EPS * gradient.sign()).clamp(-EPS, EPS)
        torch.testing.assert_close(r.delta[:32], delta)
    assert delta.abs().max() == pytest.approx(EPS)
    assert not r.delta[32:].any()


def test_free_replays_each_minibatch(context: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def noting(self: FreeRecipe, target: Any, batch: Minibatch) -> tuple[torch.Tensor, ...]:
        seen.append(batch.index.tolist())
        return original(self, target, batch)

    original = FreeRecipe.inner
    monkeypatch.setattr(FreeRecipe, "inner", noting)
    Free(FreeParams(model="tiny-cnn", epochs=1, batch_size=100, replays=3)).fit(context())
    assert len(seen) == 9
    assert seen[0] == seen[1] == seen[2] != seen[3] == seen[5]
    assert sorted(seen[0] + seen[3] + seen[6]) == list(range(300))


# --- all of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("defense", "params"),
    [
        (PGDAT, {"inner": {"steps": 1}, "awp": {"warmup": 1}}),
        (TRADES, {"inner": {"steps": 1}, "awp": {}}),
        (MART, {"inner": {"steps": 1}, "lr": 0.05}),
        (Fast, {}),
        (Free, {"replays": 2}),
        (Free, {"replays": 2, "awp": {}}),
    ],
)
def test_killed_at_any_step_it_ends_with_the_same_bits(
    context: Make, survives_kills: Make, defense: Any, params: dict[str, Any]
) -> None:
    p = defense.Params(model="tiny-cnn", model_params={"width": 4}, epochs=3, batch_size=100, **params)
    # Of 9 steps or more: in the middle of an epoch, at its end, in the middle of another.
    assert survives_kills(lambda folder: defense(p).fit(context(folder=folder)), AdversarialRecipe, (2, 1, 4))
