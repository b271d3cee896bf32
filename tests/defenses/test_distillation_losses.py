"""Losses of students on clean images: each against its formula, in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkd import plugins
from robustkd.contracts import DataError, TargetError, UsageError, target_references
from robustkd.defenses.image.distillation.bd_kd import BDKDRecipe
from robustkd.defenses.image.distillation.dataset_reinforcement import (
    DatasetReinforcementParams,
    DatasetReinforcementRecipe,
    copied,
    dense,
)
from robustkd.defenses.image.distillation.hard_augmentation import (
    AffineAugmentor,
    HardAugmentationParams,
    HardAugmentationRecipe,
)
from robustkd.defenses.image.distillation.kd3 import KD3Params, KD3Recipe, kept, mixed_distribution, web_images
from robustkd.defenses.image.distillation.meal_v2 import MEALV2Recipe
from robustkd.defenses.image.distillation.nd_loss import NDLossParams, NDLossRecipe, class_directions
from robustkd.defenses.image.distillation.ofa_kd import OFAKDParams, OFAKDRecipe, enhanced, spread
from robustkd.defenses.image.distillation.quantised_distillation import (
    Quantised,
    QuantisedDistillationParams,
    QuantisedDistillationRecipe,
    quantised,
)
from robustkd.defenses.image.distillation.self_distillation import sla_sd
from robustkd.defenses.image.distillation.self_distillation.iterated_self_distillation import IteratedSelfDistillationRecipe
from robustkd.defenses.image.distillation.self_distillation.ps_kd import PSKDParams, PSKDRecipe
from robustkd.defenses.image.distillation.self_distillation.random_teacher import (
    Projection,
    RandomTeacher,
    RandomTeacherParams,
    RandomTeacherRecipe,
)
from robustkd.defenses.image.distillation.self_distillation.sla_sd import SLASDParams, SLASDRecipe
from robustkd.defenses.image.distillation.sinkd import SinKDParams, SinKDRecipe, sinkhorn_distance
from robustkd.defenses.image.distillation.taid import TAIDParams, TAIDRecipe
from robustkd.defenses.image.distillation.tgeo_kd import TGeoKDParams, TGeoKDRecipe, class_means, geometry
from robustkd.defenses.training import Minibatch, Recipe, Teacher
from robustkd.defenses.training.auxiliary import AuxiliaryNetwork, with_auxiliary
from robustkd.defenses.training.batches import Samples
from robustkd.defenses.training.optim import base_lr
from robustkd.targets import ClassifierTarget, load_target, save_target
from robustkd.targets.activations import last_linear

Make = Callable[..., Any]
STUDENT = {"teacher": "teacher", "student": "tiny-cnn", "student_params": {"width": 4}}
OWN = {"model": "tiny-cnn", "model_params": {"width": 4}}
ROWS = np.arange(32)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(1)


def ce(p: np.ndarray, labels: Tensor) -> np.ndarray:
    return -np.log(p[np.arange(len(p)), labels.numpy()])


def onehot(labels: Tensor) -> np.ndarray:
    return np.eye(10)[labels.numpy()]


def gradients(loss: Tensor, target: ClassifierTarget) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(target.module.parameters()), retain_graph=True))


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(one, other, strict=True))


@pytest.fixture
def two(linear: Make) -> tuple[ClassifierTarget, ClassifierTarget]:
    """A student and a teacher, both linear."""
    return linear(0, 3), linear(1, 3)


# --- formulas ----------------------------------------------------------------------------------------------------------


def test_ps_kd_mixes_the_label_with_the_answer_of_the_epoch_before(linear: Make, softmax: Make, minibatch: Minibatch) -> None:
    recipe, y = PSKDRecipe(minibatch.y, 10, PSKDParams(**OWN, epochs=4)), minibatch.y
    before, now = linear(0, 3), linear(1, 3)
    first = Minibatch(minibatch.x, y, minibatch.index, seed=3, epoch=0)
    assert recipe.loss(before, first)[0].item() == pytest.approx(ce(softmax(before(first.x)), y).mean(), rel=1e-5)
    loss, _ = recipe.loss(now, minibatch)  # of epoch 1: a = 0.8 * 2 / 4
    soft = 0.6 * onehot(y) + 0.4 * softmax(before(minibatch.x))
    assert loss.item() == pytest.approx(-(soft * np.log(softmax(now(minibatch.x)))).sum(1).mean(), rel=1e-5)
    np.testing.assert_allclose(recipe.tensors()["answers"], softmax(now(minibatch.x)), atol=1e-6)


def test_bd_kd_weighs_the_divergences_by_who_is_surer_and_keeps_the_networks_apart(
    two: Any, softmax: Make, minibatch: Minibatch
) -> None:
    student, teacher = two
    pair, y = with_auxiliary(student, teacher=teacher.module), minibatch.y
    loss, measured = BDKDRecipe(3.0).loss(pair, minibatch)
    p, q = softmax(student(minibatch.x)), softmax(teacher(minibatch.x))
    unsure = -(p * np.log(p)).sum(1) > -(q * np.log(q)).sum(1)
    assert 0 < unsure.sum() < 32
    divergences = np.where(unsure, kl(q, p) + 3 * kl(p, q), 3 * kl(q, p) + kl(p, q)).mean()
    assert measured["loss_student"].item() == pytest.approx(ce(p, y).mean() + divergences, rel=1e-4)
    assert measured["loss_teacher"].item() == pytest.approx(ce(q, y).mean() + kl(p, q).mean(), rel=1e-4)
    assert same(gradients(loss, student), gradients(measured["loss_student"], student))
    assert same(gradients(loss, teacher), gradients(measured["loss_teacher"], teacher))


def test_taid_starts_from_its_own_answer_and_hurries_where_the_loss_falls(
    two: Any, softmax: Make, minibatch: Minibatch
) -> None:
    student, teacher = two
    recipe = TAIDRecipe(Teacher(teacher), TAIDParams(**STUDENT, step=0.1, momentum=0.5), steps=100)
    loss, _ = recipe.loss(student, minibatch)
    z_s, z_t = student(minibatch.x).detach(), teacher(minibatch.x).detach()
    target = softmax(0.6 * z_s + 0.4 * z_t)
    assert loss.item() == pytest.approx(kl(target, softmax(z_s)).mean(), rel=1e-4)
    by_hand = F.cross_entropy(student(minibatch.x), torch.from_numpy(target).float())  # the target is a constant
    assert same(gradients(loss, student), gradients(by_hand, student))
    t, m = 0.4, 0.0
    for n, (previous, now) in enumerate([(None, 2.0), (2.0, 1.0), (1.0, 1.5), (1.5, 0.1)], start=1):
        if previous is not None:
            m = 0.5 * m + 0.5 * (previous - now) / previous
            t = min(1.0, max(0.4 + 0.6 * n / 100, t + 0.1 * (1 - t) / (1 + math.exp(-m))))
        recipe.after_step({"train_loss": now})
        assert recipe.t == pytest.approx(t)
    assert recipe.state_dict() == pytest.approx({"t": t, "trend": m, "previous": 0.1, "done": 4})
    for _ in range(96):
        recipe.after_step({"train_loss": 0.1})
    assert recipe.t == 1.0
    assert (TAIDParams(**STUDENT).step, TAIDParams(**STUDENT).momentum) == (5e-4, 0.99)


def test_sinkd_moves_one_set_of_answers_onto_the_other(two: Any, softmax: Make, minibatch: Minibatch) -> None:
    student, teacher = two
    loss, measured = SinKDRecipe(Teacher(teacher), SinKDParams(**STUDENT)).loss(student, minibatch)
    p, q = softmax(student(minibatch.x), 2.0), softmax(teacher(minibatch.x), 2.0)
    cost = np.abs(p[:, None] - q[None]).sum(2)
    plan = np.exp(-cost / 0.1)
    for _ in range(20):
        plan /= plan.sum(1, keepdims=True)
        plan /= plan.sum(0, keepdims=True)
    distance = (plan * cost).sum() / 32
    hard = ce(softmax(student(minibatch.x)), minibatch.y).mean()
    assert measured["sinkhorn_distance"].item() == pytest.approx(distance, rel=1e-4)
    assert loss.item() == pytest.approx(0.1 * hard + 0.9 * 4 * kl(q, p).mean() + 0.8 * distance, rel=1e-4)
    # The exact distance of two sets that differ in their order is 0, and 2 for answers that are all opposite.
    unit = torch.eye(4)
    assert sinkhorn_distance(unit, unit.flip(0), 0.1, 20).item() == pytest.approx(0, abs=1e-4)
    assert sinkhorn_distance(unit[:1], unit[1:2], 0.1, 20).item() == pytest.approx(2)


def test_nd_loss_wants_long_features_in_the_directions_of_the_classes(
    context: Make, two: Any, softmax: Make, minibatch: Minibatch
) -> None:
    student, teacher = two
    given = context()
    directions = class_directions(teacher, given)
    features, labels = given.train.unit().reshape(-1, 64), given.train.labels  # a linear network's are its inputs
    means = np.stack([features[labels == label].mean(0) for label in range(10)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    np.testing.assert_allclose(directions, means, atol=1e-6)
    projection = nn.Linear(64, 64, bias=False)
    p = NDLossParams(**STUDENT, alpha=0.5, beta=3.0)
    recipe = NDLossRecipe(Teacher(teacher), p, student, directions)
    target = with_auxiliary(student, projection=projection)
    loss, measured = recipe.loss(target, minibatch)
    t = minibatch.x.flatten(1).numpy()
    s = t @ projection.weight.detach().numpy().T
    longest = np.maximum(np.linalg.norm(s, axis=1), np.linalg.norm(t, axis=1))
    nd = (1 - (s * means[minibatch.y.numpy()]).sum(1) / longest).mean()
    soft = kl(softmax(teacher(minibatch.x), 4.0), softmax(student(minibatch.x), 4.0)).mean()
    hard = ce(softmax(student(minibatch.x)), minibatch.y).mean()
    assert measured["loss_features"].item() == pytest.approx(nd, rel=1e-4)
    assert loss.item() == pytest.approx(hard + 0.5 * 16 * soft + 3 * nd, rel=1e-4)
    with pytest.raises(TargetError, match="no linear layer"):
        class_directions(ClassifierTarget(nn.Flatten(), num_classes=64, input_shape=(1, 8, 8)), given)


def test_ofa_kd_teaches_each_head_with_an_enhanced_label(tiny: Make, softmax: Make, minibatch: Minibatch) -> None:
    student, teacher, y = tiny(0), tiny(1), minibatch.y
    student.module.eval(), teacher.module.eval()
    p = OFAKDParams(**STUDENT, enhancement=1.3, weight=0.5, heads_weight=2.0)
    heads = nn.ModuleList([nn.Linear(6, 10)])
    loss, _ = OFAKDRecipe(Teacher(teacher), p, student, [0]).loss(with_auxiliary(student, heads=heads), minibatch)
    before_relu = student.module.body[1](student.module.body[0](minibatch.x)).mean((2, 3))

    def by_hand(logits: Tensor, exponent: float) -> float:
        weights = (softmax(teacher(minibatch.x)) + onehot(y)) ** exponent - onehot(y)
        return float(-(weights * np.log(softmax(logits))).sum(1).mean())

    logits = student(minibatch.x)
    hard = ce(softmax(logits), y).mean()
    assert loss.item() == pytest.approx(hard + 0.5 * by_hand(logits, 1.3) + 2 * by_hand(heads[0](before_relu), 1.3), rel=1e-4)
    soft = F.cross_entropy(logits, teacher(minibatch.x).softmax(1))
    assert enhanced(logits, teacher(minibatch.x), y, 1.0).item() == pytest.approx(soft.item(), rel=1e-5)
    assert [spread(count, 4) for count in (1, 3, 4, 17)] == [[0], [0, 1, 2], [0, 1, 2, 3], [3, 7, 12, 16]]


def test_meal_v2_follows_the_mean_of_the_probabilities_and_deceives_the_discriminator(
    linear: Make, softmax: Make, minibatch: Minibatch
) -> None:
    student, first, second = linear(0, 3), linear(1, 3), linear(2, 3)
    discriminator = nn.Linear(10, 1)
    weights = [weight.detach().clone() for weight in discriminator.parameters()]
    recipe = MEALV2Recipe([Teacher(first), Teacher(second)], AuxiliaryNetwork(discriminator, 1e-3), weight=0.3)
    loss, measured = recipe.loss(student, minibatch)
    x = minibatch.x
    mean = (softmax(first(x)) + softmax(second(x))) / 2

    def scores(logits: Tensor, weight: Tensor, bias: Tensor) -> np.ndarray:
        return (logits @ weight.T + bias).detach().double().numpy()

    real, fake = (first(x) + second(x)) / 2, student(x)
    told = np.log1p(np.exp(-scores(real, *weights))).mean() + np.log1p(np.exp(scores(fake, *weights))).mean()
    assert measured["loss_discriminator"].item() == pytest.approx(told, rel=1e-4)
    moved = list(discriminator.parameters())  # it has made its step: Adam's first is lr in the direction of the sign
    assert all(
        (now - before).abs().max().item() == pytest.approx(1e-3, rel=1e-2) for now, before in zip(moved, weights, strict=True)
    )
    fooled = np.log1p(np.exp(-scores(fake, *moved))).mean()
    assert loss.item() == pytest.approx(kl(mean, softmax(fake)).mean() + 0.3 * fooled, rel=1e-4)
    # The student goes up where the discriminator goes down.
    by_hand = F.cross_entropy(student(x), torch.from_numpy(mean).float()) + 0.3 * F.softplus(-discriminator(student(x))).mean()
    assert same(gradients(loss, student), gradients(by_hand, student))


def test_sla_sd_teaches_the_single_head_what_four_views_agree_on(linear: Make, softmax: Make, minibatch: Minibatch) -> None:
    torch.manual_seed(5)
    network, y = nn.Sequential(nn.Flatten(), nn.Linear(64, 50)), minibatch.y
    target = ClassifierTarget(sla_sd.FirstOutputs(network, 10), num_classes=10, input_shape=(1, 8, 8))
    loss, measured = SLASDRecipe(SLASDParams(**OWN, temperature=2.0, beta=0.7)).loss(target, minibatch)
    views = [torch.rot90(minibatch.x, turn, (2, 3)) for turn in range(4)]
    joint = [network(view)[:, 10:].view(-1, 10, 4) for view in views]
    flat = [softmax(view.flatten(1)).reshape(-1, 10, 4) for view in joint]
    hard = np.mean([-np.log(flat[turn][ROWS, y.numpy(), turn]) for turn in range(4)])
    agreed = sum(joint[turn][:, :, turn] for turn in range(4)) / 4
    single = network(minibatch.x)[:, :10]
    soft = kl(softmax(agreed, 2.0), softmax(single, 2.0)).mean()
    assert measured["loss_joint"].item() == pytest.approx(hard, rel=1e-4)
    assert loss.item() == pytest.approx(hard + 4 * soft + 0.7 * ce(softmax(single), y).mean(), rel=1e-4)
    (gradient,) = torch.autograd.grad(measured["loss_single"], [network[1].weight])
    assert gradient[:10].abs().sum() > 0
    assert gradient[10:].abs().sum() == 0  # the aggregated answer is a constant


def test_iterated_self_distillation_is_the_weighed_squared_error(two: Any, softmax: Make, minibatch: Minibatch) -> None:
    student, teacher = two
    p, q, hard = softmax(student(minibatch.x)), softmax(teacher(minibatch.x)), onehot(minibatch.y)
    first, _ = IteratedSelfDistillationRecipe(None, 0.6).loss(student, minibatch)
    later, _ = IteratedSelfDistillationRecipe(Teacher(teacher), 0.6).loss(student, minibatch)
    assert first.item() == pytest.approx(((p - hard) ** 2).mean(), rel=1e-5)
    assert later.item() == pytest.approx(0.6 * ((p - hard) ** 2).mean() + 0.4 * ((p - q) ** 2).mean(), rel=1e-5)


def test_the_random_teacher_begins_with_the_settings_of_the_authors_runs() -> None:
    p = RandomTeacherParams(model="tiny-cnn")
    assert (p.teacher_temperature, p.student_temperature, p.weight_decay, p.optimiser) == (1.0, 1.0, 0.0, "adamw")
    assert (base_lr(p), p.schedule, p.distance) == (1e-3, "constant", 0.0)


def test_a_random_teachers_student_gets_no_label_but_in_its_probe(two: Any, softmax: Make, minibatch: Minibatch) -> None:
    student, teacher = two
    p = RandomTeacherParams(**OWN, hidden=8, bottleneck=4, outputs=6, teacher_temperature=0.5, student_temperature=2.0)
    mine, fixed = Projection(64, p), Projection(64, p)
    recipe = RandomTeacherRecipe(student, teacher, fixed, p)
    target, before = with_auxiliary(student, projection=mine), student.module[1].weight.detach().clone()
    hard = ce(softmax(student(minibatch.x)), minibatch.y).mean()
    loss, measured = recipe.loss(target, minibatch)
    features = minibatch.x.flatten(1)
    soft = kl(softmax(fixed(features), 0.5), softmax(mine(features), 2.0)).mean()
    assert loss.item() == pytest.approx(soft, rel=1e-4)
    assert measured["loss_probe"].item() == pytest.approx(hard, rel=1e-4)
    assert not torch.equal(student.module[1].weight, before)  # the probe has made its step
    loss.backward()
    assert student.module[1].weight.grad is None
    assert mine.directions.weight.grad is not None
    cosines = mine(features)
    assert cosines.shape == (32, 6)
    assert cosines.abs().max() <= 1 + 1e-6


@pytest.mark.parametrize("distance", [0.0, 0.25])
def test_the_student_starts_at_its_random_teacher_or_so_far_from_it(
    context: Make, monkeypatch: pytest.MonkeyPatch, distance: float
) -> None:
    seen: list[list[Tensor]] = []

    def first(self: RandomTeacherRecipe, target: Any, batch: Minibatch) -> Any:
        weights = zip(self.student.module.parameters(), self.teacher.module.parameters(), strict=True)
        seen.append([(mine - theirs).norm() / theirs.norm() for mine, theirs in weights])
        raise SystemExit

    monkeypatch.setattr(RandomTeacherRecipe, "loss", first)
    with pytest.raises(SystemExit):
        RandomTeacher(RandomTeacherParams(**OWN, distance=distance)).fit(context())
    apart = torch.stack(seen[0])
    if distance == 0:
        assert apart.max() == 0
    else:  # two independent draws are about sqrt(2) apart, relative to their length
        assert apart.mean().item() == pytest.approx(0.25 * math.sqrt(2), rel=0.25)


def test_quantised_weights_have_so_many_levels_and_pass_their_gradient_on(
    linear: Make, softmax: Make, minibatch: Minibatch
) -> None:
    torch.manual_seed(0)
    weights = torch.randn(5, 130)
    found = quantised(weights, bits=3, bucket=256).flatten().numpy()
    flat = weights.flatten().numpy()
    for first in range(0, 650, 256):
        part = flat[first : first + 256]
        low, high = part.min(), part.max()
        by_hand = low + (high - low) / 7 * np.round(7 * (part - low) / (high - low))
        np.testing.assert_allclose(found[first : first + 256], by_hand, atol=1e-5)
        assert len(np.unique(found[first : first + 256])) <= 8
    assert torch.equal(quantised(torch.full((4, 4), 0.3), 2, 256), torch.full((4, 4), 0.3))
    network, teacher = linear(0, 3).module, linear(1, 3)
    coarse = ClassifierTarget(Quantised(network, 3, 256), num_classes=10, input_shape=(1, 8, 8))
    recipe = QuantisedDistillationRecipe(Teacher(teacher), QuantisedDistillationParams(**STUDENT, bits=3))
    loss, _ = recipe.loss(coarse, minibatch)
    loss.backward()
    deployed = linear(0, 3)
    Quantised(deployed.module, 3, 256).bake()
    logits = deployed(minibatch.x)
    assert torch.equal(logits, coarse(minibatch.x))
    soft = kl(softmax(teacher(minibatch.x), 2.0), softmax(logits, 2.0)).mean()
    assert loss.item() == pytest.approx(0.7 * 4 * soft + 0.3 * ce(softmax(logits), minibatch.y).mean(), rel=1e-4)
    at_coarse = gradients(recipe.loss(deployed, minibatch)[0], deployed)
    assert same([weight.grad for weight in network.parameters()], at_coarse)
    assert not torch.equal(network[1].weight, deployed.module[1].weight)  # the fine weights are still there


def test_tgeo_kd_weighs_each_sample_and_its_weights_go_down_the_validation_loss(
    context: Make, two: Any, softmax: Make, minibatch: Minibatch
) -> None:
    student, teacher = two
    given, x, y = context(), minibatch.x, minibatch.y
    means = class_means(Teacher(teacher), Samples(given.train, given.device), 10)
    answers = softmax(teacher(torch.from_numpy(given.train.unit())))
    by_hand = np.stack([answers[given.train.labels == label].mean(0) for label in range(10)])
    np.testing.assert_allclose(means, by_hand, atol=1e-5)
    p, q, truth, mean = softmax(student(x)), softmax(teacher(x)), onehot(y), by_hand[y.numpy()]
    sides = [np.linalg.norm(a - b, axis=1) for a, b in ((p, truth), (q, truth), (p, q), (p, mean), (mean, truth))]
    shape = geometry(student(x), teacher(x), y, means)
    np.testing.assert_allclose(shape.detach(), np.concatenate([p, q, truth, mean, np.stack(sides, 1)], 1), atol=1e-5)
    ratio = AuxiliaryNetwork(nn.Linear(45, 1), 1e-3)
    upper = Samples(given.validation, given.device)
    params = TGeoKDParams(**STUDENT, lr=0.5, every=2, temperature=2.0)
    recipe = TGeoKDRecipe(Teacher(teacher), params, ratio, means, upper)
    recipe.done = 1  # not the upper level's turn
    loss, _ = recipe.loss(student, minibatch)
    share = 1 / (1 + np.exp(-ratio(shape).squeeze(1).detach().double().numpy()))
    lower = share * 4 * kl(softmax(teacher(x), 2.0), softmax(student(x), 2.0)) + (1 - share) * ce(p, y)
    assert loss.item() == pytest.approx(lower.mean(), rel=1e-4)
    # The upper level's gradient, by finite differences through an explicit step of the student.
    recipe.start_epoch(1, 0.5)
    (slope,) = torch.autograd.grad(recipe.upper_loss(student, minibatch, teacher(x).detach()), [ratio.module.bias])

    def after_a_step(shift: float) -> float:
        with torch.no_grad():
            ratio.module.bias += shift
        weight, bias = gradients(recipe.lower_loss(student(x), teacher(x), y, recipe.share(student(x), teacher(x), y)), student)
        with torch.no_grad():
            ratio.module.bias -= shift
        moved = [(now - 0.25 * g).double() for now, g in zip(student.module.parameters(), (weight, bias), strict=True)]
        images, labels = upper.take(torch.arange(60))
        return F.cross_entropy(images.flatten(1).double() @ moved[0].T + moved[1], labels).item()

    assert slope.item() == pytest.approx((after_a_step(0.05) - after_a_step(-0.05)) / 0.1, rel=0.02)
    recipe.done, before = 0, ratio.module.bias.item()
    recipe.loss(student, minibatch)
    assert ratio.module.bias.item() == pytest.approx(before - 1e-3 * np.sign(slope.item()), rel=1e-3)


def test_dataset_reinforcement_replays_what_the_teacher_said_of_the_same_copy(
    two: Any, softmax: Make, minibatch: Minibatch
) -> None:
    student, teacher = two
    p = DatasetReinforcementParams(**STUDENT, copies=3, top=4, probability=0.6)
    copies = [copied(minibatch.x, minibatch.index, torch.full((32,), copy), 3, minibatch.seed) for copy in range(3)]
    assert all((copies[0] != other).flatten(1).any(1).sum() > 25 for other in copies[1:])
    largest = torch.stack([teacher(copy).softmax(1) for copy in copies], 1).detach().topk(4, dim=2)
    recipe = DatasetReinforcementRecipe(Teacher(teacher), p, largest.values, largest.indices)
    loss, measured = recipe.loss(student, minibatch)
    rng = minibatch.rng("reinforcement")
    drawn, replayed = rng.integers((), 3), rng.uniform(()) < 0.6
    assert 8 < replayed.sum() < 28
    total = 0.0
    for row in range(32):
        if replayed[row]:
            answer = softmax(teacher(copies[drawn[row]][row : row + 1]))[0]
            kept = answer >= np.sort(answer)[-4]
            soft = np.where(kept, answer, (1 - answer[kept].sum()) / 6)
            total += kl(soft[None], softmax(student(copies[drawn[row]][row : row + 1])))[0]
        else:
            total += ce(softmax(student(minibatch.x[row : row + 1])), minibatch.y[row : row + 1])[0]
    assert loss.item() == pytest.approx(total / 32, rel=1e-4)
    assert measured["replayed"].item() == pytest.approx(replayed.float().mean().item())


def test_ferkd_leaves_out_what_the_teacher_is_unsure_about_and_softens_labels_in_the_middle(
    two: Any, softmax: Make, minibatch: Minibatch
) -> None:
    student, teacher = two
    rows = torch.arange(32)
    copies = torch.stack(
        [copied(minibatch.x, minibatch.index, torch.full((32,), copy), 2, minibatch.seed) for copy in (0, 1)], 1
    )
    answers = torch.stack([teacher(copies[:, copy]).softmax(1) for copy in (0, 1)], 1).detach().topk(10, dim=2)
    drawn = minibatch.rng("reinforcement").integers((), 2)
    sure = answers.values[rows, drawn, 0]
    low, high = sure.quantile(0.3).item(), sure.quantile(0.7).item()

    def made(**thresholds: float) -> float:
        p = DatasetReinforcementParams(**STUDENT, copies=2, top=10, probability=1.0, **thresholds)
        recipe = DatasetReinforcementRecipe(Teacher(teacher), p, answers.values, answers.indices)
        return float(recipe.loss(student, minibatch)[0].item())

    seen = copies[rows, drawn]
    p, q = softmax(teacher(seen)), softmax(student(seen))
    label = 0.8 * np.eye(10)[minibatch.y] + 0.02
    middle, top = (sure >= low).numpy() & (sure < high).numpy(), (sure >= high).numpy()
    wanted = (kl(label, q)[middle].sum() + kl(p, q)[top].sum()) / (middle | top).sum()
    assert made(drop_below=low, soften_below=high, smoothing=0.2) == pytest.approx(wanted, rel=1e-4)
    # No copy below the thresholds: FKD, which is dataset reinforcement of the same copies.
    assert made(drop_below=1e-9, soften_below=1e-9) == pytest.approx(made(), rel=1e-6)
    assert made(drop_below=low) != pytest.approx(made(), rel=1e-3)


def test_ferkd_refuses_a_band_that_is_upside_down() -> None:
    with pytest.raises(ValueError, match="soften_below is under drop_below"):
        DatasetReinforcementParams(**STUDENT, drop_below=0.5, soften_below=0.2)
    everything = torch.full((2, 10), 0.1)
    torch.testing.assert_close(dense(everything, torch.arange(10).expand(2, -1), 10), everything)
    with pytest.raises(ValueError, match="none"):
        DatasetReinforcementParams(**STUDENT, augment="crop-flip")


def test_hard_augmentation_moves_images_apart_where_the_teacher_stays(two: Any, softmax: Make, minibatch: Minibatch) -> None:
    student, teacher = two
    network = AffineAugmentor(1, limit=0.3, width=4)
    recipe = HardAugmentationRecipe(
        Teacher(teacher), HardAugmentationParams(**STUDENT, stay=0.5), AuxiliaryNetwork(network, 0.01)
    )
    noise, x = minibatch.rng("augmentor").normal((8,)), minibatch.x

    def objective() -> float:
        hard = network(x, noise)
        clean, moved = softmax(teacher(x)), softmax(teacher(hard))
        return float(0.5 * kl(clean, moved).mean() - kl(moved, softmax(student(hard))).mean())

    before = objective()
    loss, _ = recipe.loss(student, minibatch)
    assert objective() < before  # the augmentor has made its step
    hard = network(x, noise).detach()
    by_hand = sum(kl(softmax(teacher(at)), softmax(student(at))).mean() for at in (x, hard))
    assert loss.item() == pytest.approx(by_hand, rel=1e-4)
    assert same(
        gradients(loss, student),
        gradients(sum(F.cross_entropy(student(at), teacher(at).softmax(1).detach()) for at in (x, hard)), student),
    )
    assert hard.min() >= 0
    assert hard.max() <= 1
    with torch.no_grad():
        network.drawn[2].weight.zero_(), network.drawn[2].bias.zero_()
    torch.testing.assert_close(network(x, noise), x, atol=1e-5, rtol=0)  # the identity


# --- as defenses -------------------------------------------------------------------------------------------------------

QUICK = {"epochs": 2, "batch_size": 120, "lr": 0.02}
METHODS: dict[str, dict[str, Any]] = {
    "ps-kd": OWN,
    "bd-kd": {"student": "tiny-cnn", "student_params": {"width": 4}, "teacher_model": "tiny-cnn"},
    "taid": STUDENT,
    "sinkd": STUDENT,
    "nd-loss": STUDENT,
    "ofa-kd": STUDENT,
    "meal-v2": {"teachers": ["teacher", "other"], "student": "tiny-cnn", "student_params": {"width": 4}},
    "sla-sd": OWN,
    "iterated-self-distillation": OWN | {"rounds": 2},
    "random-teacher": OWN | {"hidden": 8, "outputs": 16},
    "quantised-distillation": STUDENT,
    "tgeo-kd": STUDENT | {"every": 2},
    "dataset-reinforcement": STUDENT | {"copies": 2},
    "hard-augmentation": STUDENT,
}


def defense(kind: str, **changes: Any) -> Any:
    plugin = plugins.load("defenses", kind)
    return plugin(plugin.Params(**METHODS[kind] | QUICK | changes))


@pytest.mark.parametrize("kind", METHODS)
def test_killed_at_any_step_it_ends_with_the_same_bits(context: Make, tiny: Make, survives_kills: Make, kind: str) -> None:
    method = defense(kind)
    module = __import__(type(method).__module__, fromlist=["_"])
    (recipe,) = {
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Recipe) and value.__module__ == module.__name__
    }

    def fit(folder: str) -> Any:
        return method.fit(context(folder=folder, targets={"teacher": tiny(1), "other": tiny(2)}))

    assert survives_kills(fit, recipe, (2, 1))


@pytest.mark.parametrize("kind", METHODS)
def test_what_is_deployed_can_be_saved_and_the_teachers_are_left_as_found(
    context: Make, tiny: Make, same_weights: Make, minibatch: Minibatch, tmp_path: Path, kind: str
) -> None:
    method = defense(kind, epochs=1)
    teachers = {name: tiny(seed) for name, seed in (("teacher", 1), ("other", 2))}
    for teacher in teachers.values():
        teacher.module.train()
    given = context(targets=teachers)
    student = method.fit(given)
    assert set(target_references(method.params)) <= set(teachers)
    assert type(method.params)(**method.params.model_dump(mode="json")) == method.params
    for name, seed in (("teacher", 1), ("other", 2)):
        assert same_weights(teachers[name], tiny(seed))
        assert teachers[name].module.training
        assert all(weight.requires_grad and weight.grad is None for weight in teachers[name].module.parameters())
    assert not student.module.training
    folder = tmp_path / "saved"
    folder.mkdir()
    save_target(student, folder)
    assert torch.equal(load_target(folder)(minibatch.x), student(minibatch.x))


def test_sla_sd_refuses_images_that_are_not_square(context: Make) -> None:
    with pytest.raises(UsageError, match="8 x 6"):
        defense("sla-sd").fit(context(input_shape=(1, 8, 6)))


def test_the_deployed_weights_of_quantised_distillation_are_the_quantised_ones(context: Make, tiny: Make) -> None:
    student = defense("quantised-distillation", bits=2).fit(context(targets={"teacher": tiny(1)}))
    weights = [weight for weight in student.module.parameters() if weight.dim() > 1]
    assert all(len(part.unique()) <= 4 for weight in weights for part in weight.flatten().split(256))


def test_each_round_of_iterated_self_distillation_is_on_the_curve(context: Make, curve: Make) -> None:
    log = curve()
    defense("iterated-self-distillation", rounds=3, epochs=2).fit(context(log=log))
    assert log.epochs == [0, 1, 2, 3, 4, 5]
    assert ["loss_soft" in row for row in log.metrics] == [False, False, True, True, True, True]


def test_kd3_keeps_what_both_are_sure_of() -> None:
    sure = torch.tensor([[8.0, 0.0], [0.0, 8.0], [0.1, 0.0], [0.0, 0.0]])
    assert kept(sure, sure, 1.0).tolist() == [True, True, False, False]
    assert kept(sure, sure, 0.0).all()
    assert kept(torch.cat([sure[:1], sure[:1]]), torch.cat([sure[:1], sure[1:2]]), 1.0).tolist() == [
        True,
        False,
    ]  # who disagree
    assert kept(torch.zeros(3, 2), torch.zeros(3, 2), 9.0).all()
    sharper = sure * torch.tensor([[1.0], [1.0], [20.0], [1.0]])
    assert kept(sharper, sharper, 1.0).tolist() == [True, True, True, False]  # monotone in the confidence


def test_kd3_moves_an_image_into_anothers_distribution() -> None:
    x, other = torch.rand(3, 2, 5, 5) * 0.2 + 0.4, torch.rand(3, 2, 5, 5) * 0.1 + 0.45
    torch.testing.assert_close(mixed_distribution(x, other, torch.zeros(3, 1, 1, 1)), x)
    moved = mixed_distribution(x, other, torch.ones(3, 1, 1, 1)).double().numpy()
    np.testing.assert_allclose(moved.mean((2, 3)), other.double().numpy().mean((2, 3)), atol=1e-4)
    np.testing.assert_allclose(moved.std((2, 3)), other.double().numpy().std((2, 3)), atol=1e-3)


def test_kd3_is_the_sum_of_its_terms(context: Make, two: Any, softmax: Make, minibatch: Minibatch) -> None:
    """Against numpy; without its three ideas it is the divergence from the teacher alone."""
    student, teacher = two
    projection = nn.Linear(64, 64, bias=False)
    target = with_auxiliary(student, projection=projection)
    plain = KD3Params(**STUDENT, strictness=0, alignment=0, contrast=0)
    soft = kl(softmax(teacher(minibatch.x), 4.0), softmax(student(minibatch.x), 4.0))
    loss, _ = KD3Recipe(Teacher(teacher), plain, student).loss(target, minibatch)
    assert loss.item() == pytest.approx(16 * soft.mean(), rel=1e-4)
    both = (softmax(teacher(minibatch.x)) + softmax(student(minibatch.x))) / 2
    keep = both.max(1) >= both.max(1).mean()
    aligned = KD3Params(**STUDENT, strictness=1, alignment=0.5, contrast=0)
    loss, measured = KD3Recipe(Teacher(teacher), aligned, student).loss(target, minibatch)
    x, p = minibatch.x.flatten(1).numpy(), projection.weight.detach().numpy()
    rows, own = (last_linear(one.module).weight.detach().numpy() for one in (teacher, student))
    said = teacher(minibatch.x).argmax(1).numpy()

    def cosine(a: Any, b: Any) -> Any:
        return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)

    expected = (1 - cosine((x @ p.T) * (own @ p.T)[said], x * rows[said])).mean() + (1 - cosine(own @ p.T, rows)).mean()
    assert measured["loss_alignment"].item() == pytest.approx(expected, rel=1e-3)
    assert loss.item() == pytest.approx(16 * (soft * keep).sum() / keep.sum() + 0.5 * expected, rel=1e-3)
    contrasted = KD3Params(**STUDENT, strictness=0, alignment=0, contrast=2.0, mix=0.0)
    _, measured = KD3Recipe(Teacher(teacher), contrasted, student).loss(target, minibatch)
    scores = torch.tensor(np.array([[cosine(a[None], b[None])[0] for b in x] for a in x])) / 0.5
    assert measured["loss_contrast"].item() == pytest.approx(float(F.cross_entropy(scores, torch.arange(len(x)))), rel=1e-3)


def test_kd3_is_trained_on_images_of_a_file_whose_content_counts(context: Make, two: Any, tmp_path: Path) -> None:
    file = tmp_path / "web.npz"
    np.savez(file, images=np.random.default_rng(0).random((40, 1, 8, 8)).astype(np.float32))
    spec = {"kind": "kd3", **STUDENT, "epochs": 1, "batch_size": 16}
    on_file, made = plugins.make("defenses", {**spec, "web": str(file)}), plugins.make("defenses", spec)
    assert on_file.files() == [file]
    assert made.files() == []
    images = web_images(context().train, 3)
    assert images.shape == context().train.images.shape
    assert images.min() >= 0 <= images.max() <= 1
    assert not np.array_equal(images, web_images(context().train, 4))
    np.savez(file, images=np.zeros((4, 3, 8, 8)))
    with pytest.raises(DataError, match="'images' has the shape"):
        on_file.fit(context())
    file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="no images can be read"):
        on_file.fit(context())
