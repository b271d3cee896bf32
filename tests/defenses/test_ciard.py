from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from robustkd.contracts import ThreatModel, target_references
from robustkd.defenses.image.robust_distillation.ciard import CIARD, CIARDParams, CIARDRecipe, push_away, push_scale
from robustkd.defenses.training import AdversarialRecipe, Adversary, Minibatch, Teacher
from robustkd.targets import ClassifierTarget

EPS = 0.15
Make = Callable[..., Any]
THREAT = ThreatModel(eps=EPS)


def params(**changes: Any) -> CIARDParams:
    given = {"teachers": {"clean": "clean", "robust": "robust"}, "student": "tiny-cnn", "student_params": {"width": 4}}
    return CIARDParams(**given | changes)


def recipe(clean: ClassifierTarget, robust: ClassifierTarget, **changes: Any) -> CIARDRecipe:
    p = params(**changes)
    robust.module.eval()
    return CIARDRecipe(Teacher(clean), robust, Adversary.under(p.inner, THREAT), THREAT, p)


def test_the_push_is_over_the_samples_that_the_clean_teacher_gets_wrong(softmax: Make) -> None:
    torch.manual_seed(0)
    z, s, y = 3 * torch.randn(20, 10), 3 * torch.randn(20, 10), torch.randint(0, 10, (20,))
    y[:8] = z.argmax(1)[:8]
    wrong = (z.argmax(1) != y).numpy()
    assert 0 < wrong.sum() < 20
    p, q = softmax(z), softmax(s, 5.0)
    expected = (p * np.log(p / q)).sum(1)[wrong].mean()
    assert push_away(z, s, y, 5.0).item() == pytest.approx(expected, rel=1e-5)
    assert push_away(z, s, z.argmax(1), 5.0).item() == 0


@pytest.mark.parametrize(
    ("push", "losses", "scale"),
    [(3.0, (0.02, 0.5), 0.01), (0.004, (0.02, 0.5), 10.0), (0.5, (0.2, 0.7), 1.0), (0.0, (0.2, 0.7), 1e6)],
)
def test_the_push_is_brought_to_the_magnitude_of_the_smaller_loss(push: float, losses: tuple[float, ...], scale: float) -> None:
    given = [torch.tensor(value, requires_grad=True) for value in (push, *losses)]
    found = push_scale(*given)
    assert found.item() == pytest.approx(scale)
    assert not found.requires_grad


def test_the_loss_is_mtards_with_equal_weights_less_the_push(linear: Make, softmax: Make, minibatch: Minibatch) -> None:
    student, clean, robust = linear(0, 3), linear(1, 3), linear(2, 3)
    r = recipe(clean, robust, kl_reduction="batch")
    r.start_epoch(1, 1.0)
    r.tau_nat = 2.0
    loss, measured = r.loss(student, minibatch)
    x, x_adv = minibatch.x, r.adversary(student, minibatch)

    def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        return (p * np.log(p / q)).sum(1)

    nat = divergence(softmax(clean(x), 2.0), softmax(student(x))).mean()
    adv = divergence(softmax(robust(x_adv)), softmax(student(x_adv))).mean()
    wrong = (clean(x_adv).argmax(1) != minibatch.y).numpy()
    push = divergence(softmax(clean(x_adv)), softmax(student(x_adv), 5.0))[wrong].mean()
    scale = 10 ** (np.floor(np.log10(min(nat, adv))) - np.floor(np.log10(push)))
    assert loss.item() == pytest.approx(0.5 * nat + 0.5 * adv - scale * push, rel=1e-4)
    assert measured["loss_push"].item() == pytest.approx(scale * push, rel=1e-4)
    for _ in range(3):
        r.after_step({"loss_nat": 1.0, "loss_adv": 9.0, "entropy_nat": 0.1, "entropy_adv": 2.0})
    assert r.w_nat == 0.5


def test_the_robust_teacher_learns_from_the_students_examples_once_it_is_its_time(linear: Make, minibatch: Minibatch) -> None:
    student, robust = linear(0, 3), linear(2, 3)
    r = recipe(linear(1, 3), robust, epochs=12, teacher_lr=0.1, teacher_from=0.25)
    weight = robust.module[1].weight
    before = weight.detach().clone()
    metrics = {"loss_nat": 1.0, "loss_adv": 1.0, "entropy_nat": 1.0, "entropy_adv": 1.0}
    r.start_epoch(2, 1.0)
    r.loss(student, minibatch)
    r.after_step(metrics)
    assert torch.equal(weight, before)
    velocity = torch.zeros_like(before)
    for epoch in (3, 6):  # 1/4 of 12 epochs; then a third of the way down the cosine
        r.start_epoch(epoch, 1.0)
        x_adv = r.adversary(student, minibatch)
        before = weight.detach().clone()
        (gradient,) = torch.autograd.grad(F.cross_entropy(robust(x_adv), minibatch.y), weight)
        loss, _ = r.loss(student, minibatch)
        loss.backward()
        r.after_step(metrics)
        velocity = 0.1 * velocity + gradient + 2e-4 * before
        rate = 0.1 * {3: 1.0, 6: 0.5 * (1 + np.cos(np.pi / 3))}[epoch]
        torch.testing.assert_close(weight.detach(), before - rate * velocity)


def test_killed_at_any_step_it_ends_with_the_same_bits_and_its_own_teacher(
    context: Make, tiny: Make, survives_kills: Make, same_weights: Make
) -> None:
    p = params(epochs=3, batch_size=100, inner={"steps": 1}, teacher_lr=0.1, teacher_from=0.3, temperature_rate=0.05)
    assert target_references(p) == ["clean", "robust"]
    robust = tiny(2)

    def fit(folder: str) -> Any:
        return CIARD(p).fit(context(folder=folder, targets={"clean": tiny(1), "robust": robust}))

    assert survives_kills(fit, AdversarialRecipe, (2, 2, 3))
    assert same_weights(robust, tiny(2))
