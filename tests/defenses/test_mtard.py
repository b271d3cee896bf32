from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkd.contracts import Target, ThreatModel, UsageError, target_references
from robustkd.defenses.image.robust_distillation.mtard import (
    MTARD,
    MTARDParams,
    MTARDRecipe,
    balanced_temperatures,
    balanced_weight,
)
from robustkd.defenses.training import Adversary, Minibatch, Teacher
from robustkd.targets import ClassifierTarget

EPS = 0.15
Make = Callable[..., Any]


def params(**changes: Any) -> MTARDParams:
    given = {"teachers": {"clean": "clean", "robust": "robust"}, "student": "tiny-cnn", "student_params": {"width": 4}}
    return MTARDParams(**given | changes)


def linear(seed: int) -> ClassifierTarget:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return ClassifierTarget(module, num_classes=10, input_shape=(1, 8, 8))


def recipe(clean: ClassifierTarget | None = None, robust: ClassifierTarget | None = None, **changes: Any) -> MTARDRecipe:
    p, threat = params(**changes), ThreatModel(eps=EPS)
    return MTARDRecipe(Teacher(clean or linear(1)), Teacher(robust or linear(2)), Adversary.under(p.inner, threat), threat, p)


def softmax(logits: Tensor, temperature: float = 1.0) -> np.ndarray:
    powers = np.exp(logits.detach().double().numpy() / temperature)
    return powers / powers.sum(1, keepdims=True)


def step(r: MTARDRecipe, **metrics: float) -> None:
    r.after_step({"entropy_nat": 1.0, "entropy_adv": 1.0} | metrics)


# --- the balances ------------------------------------------------------------------------------------------------------


def test_the_weight_moves_by_the_papers_rule() -> None:
    # w = 0.5, l_nat = 0.2, l_adv = 0.8: 0.5 - 0.025 * (0.5 - 0.2) = 0.4925
    assert balanced_weight(0.5, 0.2, 0.8, rate=0.025) == pytest.approx(0.4925)
    assert balanced_weight(0.5, 0.2, 0.8, rate=0.025, beta=2) == pytest.approx(0.5 - 0.025 * (0.5 - 0.04 / 0.68))
    assert balanced_weight(0.3, 0.0, 0.0, rate=0.1) == pytest.approx(0.32)


def test_both_weights_by_the_journals_rule_are_one_weight_and_its_rest() -> None:
    rng, w_nat, w_adv, w = np.random.default_rng(0), 0.5, 0.5, 0.5
    for _ in range(200):
        nat, adv = rng.uniform(0, 2, 2)
        w_nat, w_adv = w_nat - 0.3 * (w_nat - nat / (nat + adv)), w_adv - 0.3 * (w_adv - adv / (nat + adv))
        w_nat, w_adv = max(w_nat, 0), max(w_adv, 0)
        w_nat, w_adv = w_nat / (w_nat + w_adv), w_adv / (w_nat + w_adv)
        w = balanced_weight(w, nat, adv, rate=0.3)
        assert (w, 1 - w) == pytest.approx((w_nat, w_adv))


def test_temperatures_meet_in_the_middle_and_stay_in_their_range() -> None:
    assert balanced_temperatures(3.0, 3.0, 1.2, 0.4, rate=0.1) == pytest.approx((2.9, 3.1))
    assert balanced_temperatures(3.0, 3.0, 0.4, 1.2, rate=0.1) == pytest.approx((3.1, 2.9))
    assert balanced_temperatures(3.0, 3.0, 0.7, 0.7, rate=0.1) == (3.0, 3.0)
    assert balanced_temperatures(1.0, 1.0, 0.4, 1.2, rate=0.1) == (1.1, 1.0)
    assert balanced_temperatures(9.95, 1.0, 0.4, 1.2, rate=0.1) == (10.0, 1.0)


def test_entropy_balance_brings_the_teachers_entropies_together() -> None:
    torch.manual_seed(0)
    sharp, soft = 6 * torch.randn(50, 10), torch.randn(50, 10)
    tau_nat = tau_adv = 1.0

    def entropies() -> list[float]:
        tables = [softmax(sharp, tau_nat), softmax(soft, tau_adv)]
        return [float(-(p * np.log(p)).sum(1).mean()) for p in tables]

    for _ in range(600):
        tau_nat, tau_adv = balanced_temperatures(tau_nat, tau_adv, *entropies(), rate=0.01)
    nat, adv = entropies()
    assert nat == pytest.approx(adv, abs=0.02)
    assert tau_adv == 1.0  # it would have to go below
    assert 4 < tau_nat < 7


def test_several_steps_of_both_balances_with_decay() -> None:
    r = recipe(form="journal", reference_steps=1, weight_rate=0.1, temperature_rate=0.05)
    losses = [(2.0, 4.0), (1.0, 3.0), (0.5, 3.0), (0.6, 1.0)]
    entropies = [(0.2, 1.0), (0.3, 1.0), (1.5, 1.0), (0.3, 1.0)]
    w, tau_nat, tau_adv = 0.5, 1.0, 1.0
    for number, ((nat, adv), (h_nat, h_adv)) in enumerate(zip(losses, entropies, strict=True)):
        factor = 1.0 if number < 2 else 0.1
        r.start_epoch(number, factor)
        r.after_step({"loss_nat": nat, "loss_adv": adv, "entropy_nat": h_nat, "entropy_adv": h_adv})
        l_nat, l_adv = nat / 2.0, adv / 4.0
        w -= 0.1 * factor * (w - l_nat / (l_nat + l_adv))
        tau_adv = float(np.clip(tau_adv - 0.05 * factor * np.sign(h_adv / h_nat - 1), 1, 10))
        tau_nat = float(np.clip(tau_nat - 0.05 * factor * np.sign(h_nat / h_adv - 1), 1, 10))
        assert (r.w_nat, r.tau_nat, r.tau_adv) == pytest.approx((w, tau_nat, tau_adv))
    assert r.tau_nat == pytest.approx(1.1)


def test_first_losses_are_a_running_mean() -> None:
    r = recipe(reference_steps=3)
    for nat, adv in ((1.0, 2.0), (2.0, 4.0), (6.0, 9.0), (100.0, 100.0)):
        step(r, loss_nat=nat, loss_adv=adv)
    assert (r.first_nat, r.first_adv, r.first_steps) == pytest.approx((3.0, 5.0, 3))


def test_the_conference_form_leaves_temperatures_and_a_fixed_balance_leaves_weights() -> None:
    r = recipe(balance_loss=False)
    step(r, loss_nat=1.0, loss_adv=9.0, entropy_nat=0.1, entropy_adv=2.0)
    step(r, loss_nat=0.1, loss_adv=9.0, entropy_nat=0.1, entropy_adv=2.0)
    assert (r.w_nat, r.tau_nat, r.tau_adv) == (0.5, 1.0, 1.0)


def test_state_round_trip() -> None:
    r, other = recipe(form="journal"), recipe(form="journal")
    for nat in (1.0, 0.4, 0.2):
        step(r, loss_nat=nat, loss_adv=1.0, entropy_nat=nat, entropy_adv=0.3)
    other.load_state_dict(r.state_dict())
    for one in (r, other):
        step(one, loss_nat=0.7, loss_adv=0.1, entropy_nat=0.2)
    assert other.state_dict() == r.state_dict()


# --- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reduction", "divisor"), [("batch", 1), ("batch-and-class", 10), ("tenth", 10)])
def test_the_loss_is_the_papers_formula(minibatch: Minibatch, reduction: str, divisor: int) -> None:
    student, clean, robust = linear(0), linear(1), linear(2)
    r = recipe(clean, robust, form="journal", kl_reduction=reduction)
    r.w_nat, r.tau_nat, r.tau_adv = 0.3, 2.0, 1.5
    loss, measured = r.loss(student, minibatch)
    x, x_adv = minibatch.x, r.adversary(student, minibatch)
    assert not torch.equal(x, x_adv)

    def divergence(p: np.ndarray, q: np.ndarray) -> float:
        return float((p * np.log(p / q)).sum(1).mean()) / divisor

    p_nat, p_adv = softmax(clean(x), 2.0), softmax(robust(x_adv), 1.5)
    l_nat, l_adv = divergence(p_nat, softmax(student(x))), divergence(p_adv, softmax(student(x_adv)))
    assert loss.item() == pytest.approx(0.3 * l_nat + 0.7 * l_adv, rel=1e-5)
    assert (measured["loss_nat"].item(), measured["loss_adv"].item()) == pytest.approx((l_nat, l_adv), rel=1e-5)
    assert measured["entropy_nat"].item() == pytest.approx(float(-(p_nat * np.log(p_nat)).sum(1).mean()), rel=1e-5)
    assert measured["entropy_adv"].item() == pytest.approx(float(-(p_adv * np.log(p_adv)).sum(1).mean()), rel=1e-5)


def test_only_the_student_is_differentiated_and_through_the_outer_passes_alone(minibatch: Minibatch) -> None:
    student, clean, robust = linear(0), linear(1), linear(2)
    r = recipe(clean, robust)
    loss, _ = r.loss(student, minibatch)
    assert all(parameter.grad is None for parameter in student.module.parameters())
    loss.backward()
    assert all(parameter.grad is None for teacher in (clean, robust) for parameter in teacher.module.parameters())
    # d/dW of w_nat KL_nat + w_adv KL_adv for a linear student, by hand: (q - p)^T x, averaged over batch and classes.
    x, x_adv = minibatch.x, r.adversary(student, minibatch)
    expected = np.zeros((10, 64))
    for at, teacher in ((x, clean), (x_adv, robust)):
        difference = softmax(student(at)) - softmax(teacher(at))
        expected += 0.5 * difference.T @ at.flatten(1).double().numpy() / (len(at) * 10)
    gradient = student.module[1].weight.grad
    assert gradient is not None
    np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-7)


def test_the_inner_maximisation_starts_from_the_papers_noise(minibatch: Minibatch) -> None:
    r = recipe()
    assert (r.adversary.start, r.adversary.steps, r.adversary.step_size) == ("noise", 10, EPS / 4)
    assert recipe(inner={"steps": 5}).adversary.start == "noise"


# --- the defense -------------------------------------------------------------------------------------------------------


def teachers(same: ClassifierTarget | None = None) -> dict[str, Target]:
    return {"clean": same or linear(1), "robust": same or linear(2)}


def test_it_asks_for_both_teachers_and_reads_its_parameters_back() -> None:
    p = params(inner={"steps": 7})
    assert target_references(p) == ["clean", "robust"]
    assert MTARDParams(**p.model_dump(mode="json")) == p


@pytest.mark.parametrize("form", ["conference", "journal"])
def test_a_killed_training_keeps_its_balances(context: Make, curve: Make, same_weights: Make, form: str) -> None:
    p = params(form=form, epochs=3, batch_size=64, lr=0.5, inner={"steps": 2}, reference_steps=3)
    straight, again = curve(), curve()
    whole = MTARD(p).fit(context(folder="whole", log=straight, targets=teachers()))
    with pytest.raises(SystemExit):
        MTARD(p).fit(context(log=curve(until=1), targets=teachers()))
    resumed = MTARD(p).fit(context(log=again, targets=teachers()))
    assert same_weights(whole, resumed)
    assert again.numbers() == straight.numbers()
    assert {row["weight_nat"] for row in again.numbers()} != {0.5}
    assert (again.metrics[-1]["temperature_nat"] != 1) == (form == "journal")


def test_teachers_are_left_as_found(context: Make) -> None:
    given = teachers()
    given["clean"].module.train()
    before = {name: [p.clone() for p in target.module.parameters()] for name, target in given.items()}
    MTARD(params(epochs=1, inner={"steps": 1})).fit(context(targets=given))
    for name, target in given.items():
        for parameter, old in zip(target.module.parameters(), before[name], strict=True):
            assert torch.equal(parameter, old)
            assert parameter.requires_grad
            assert parameter.grad is None
    assert given["clean"].module.training


def test_one_target_may_teach_both(context: Make) -> None:
    target = MTARD(params(epochs=1, inner={"steps": 1})).fit(context(targets=teachers(linear(1))))
    assert not target.module.training


def test_a_teacher_of_other_data_is_refused(context: Make) -> None:
    other = ClassifierTarget(nn.Flatten(), num_classes=64, input_shape=(1, 8, 8))
    with pytest.raises(UsageError, match=r"teacher 'clean' maps \(1, 8, 8\) to 64 classes"):
        MTARD(params()).fit(context(targets=teachers() | {"clean": other}))
    with pytest.raises(UsageError, match="defense 'clean' was not handed over"):
        MTARD(params()).fit(context())
