from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from robustkd.attacks.image.gradient.pgd import PGD, PGDParams
from robustkd.contracts import Arrays, Batch, FitContext, TargetError, ThreatModel, UsageError
from robustkd.contracts.random import SampleRng
from robustkd.defenses.image.robust_distillation.mtard import MTARDParams
from robustkd.defenses.training import (
    Adversary,
    InnerMaximisation,
    Minibatch,
    Recipe,
    TrainParams,
    entropy,
    fresh_network,
    kl,
    train,
)
from robustkd.defenses.training.augment import PADDING, crop_flip
from robustkd.defenses.training.average import WeightAverage
from robustkd.defenses.training.batches import Samples, epoch_order
from robustkd.defenses.training.optim import base_lr, decay, load_optimiser_tensors, milestones, optimiser_tensors
from robustkd.defenses.training.selection import Validation
from robustkd.targets import ClassifierTarget

EPS = 0.15
Make = Callable[..., Any]


class Plain(Recipe):
    """Cross entropy that dies before a given step, with a state of its own that the loss depends on."""

    state = ("steps", "pull")

    def __init__(self, dies_at: int | None = None, threat: ThreatModel | None = None) -> None:
        self.dies_at, self.threat = dies_at, threat
        self.steps, self.pull = 0, 1.0

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        if self.steps == self.dies_at:
            raise SystemExit("killed")
        loss = F.cross_entropy(target(batch.x), batch.y)
        return self.pull * loss, {"half": loss / 2}

    def after_step(self, metrics: Mapping[str, float]) -> None:
        self.steps += 1
        self.pull = 0.9 * self.pull + 0.1 * metrics["half"]


# --- divergences -------------------------------------------------------------------------------------------------------


def numpy_softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) / temperature)
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize(("teacher_tau", "student_tau"), [(1.0, 1.0), (4.0, 1.0), (2.5, 7.0)])
def test_kl_is_the_textbook_sum_under_each_reduction(teacher_tau: float, student_tau: float) -> None:
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(6, 5), scale=3), rng.normal(size=(6, 5), scale=3)
    p, q = numpy_softmax(teacher, teacher_tau), numpy_softmax(student, student_tau)
    rows = (p * np.log(p / q)).sum(1)
    for reduction, expected in (("none", rows), ("batch", rows.mean()), ("batch-and-class", (p * np.log(p / q)).mean())):
        value = kl(
            torch.from_numpy(teacher),
            torch.from_numpy(student),
            teacher_temperature=teacher_tau,
            student_temperature=student_tau,
            reduction=reduction,  # type: ignore[arg-type]
        )
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-12)


def test_kl_is_finite_for_saturated_logits_and_its_gradient_is_the_closed_form() -> None:
    teacher = torch.tensor([[900.0, 0.0, -900.0]])
    student = torch.tensor([[0.3, -0.2, 0.1]], requires_grad=True)
    value = kl(teacher, student, student_temperature=2.0, reduction="batch")
    value.backward()
    assert value.item() == pytest.approx(-F.log_softmax(student.detach() / 2, 1)[0, 0].item())
    expected = (F.softmax(student.detach() / 2, 1) - torch.tensor([[1.0, 0.0, 0.0]])) / 2
    torch.testing.assert_close(student.grad, expected)


def test_half_precision_logits_are_widened() -> None:
    logits = torch.randn(4, 10).bfloat16()
    assert kl(logits, logits, reduction="batch").dtype == torch.float32


def test_entropy_matches_numpy_and_its_limits() -> None:
    logits = np.random.default_rng(1).normal(size=(5, 10), scale=4)
    p = numpy_softmax(logits, 3.0)
    np.testing.assert_allclose(entropy(torch.from_numpy(logits), 3.0).numpy(), -(p * np.log(p)).sum(1), rtol=1e-12)
    assert entropy(torch.zeros(1, 10)).item() == pytest.approx(math.log(10))
    assert entropy(torch.tensor([[800.0, 0.0]])).item() == 0


# --- parameters and schedule -------------------------------------------------------------------------------------------


def mtard(**changes: Any) -> MTARDParams:
    return MTARDParams(teachers={"clean": "a", "robust": "b"}, student="tiny-cnn", **changes)


def test_mtard_keeps_its_papers_schedule() -> None:
    p = mtard()
    assert (p.epochs, p.batch_size, p.momentum, p.weight_decay, base_lr(p)) == (300, 128, 0.9, 2e-4, 0.1)
    assert milestones(p) == (215, 260, 285)
    expected = {0: 1, 214: 1, 215: 0.1, 259: 0.1, 260: 0.01, 284: 0.01, 285: 0.001, 299: 0.001}
    assert {epoch: decay(p, epoch) for epoch in expected} == pytest.approx(expected)


def test_a_shorter_training_keeps_the_shape_and_given_milestones_are_absolute() -> None:
    assert milestones(mtard(epochs=30)) == (22, 26, 28)
    p = TrainParams(epochs=10, milestones=(3, 7), gamma=0.5)
    assert [decay(p, epoch) for epoch in range(10)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_cosine_and_constant() -> None:
    cosine = [decay(TrainParams(epochs=4, schedule="cosine"), epoch) for epoch in range(4)]
    assert cosine == pytest.approx([1, 0.5 + math.sqrt(2) / 4, 0.5, 0.5 - math.sqrt(2) / 4])
    assert {decay(TrainParams(epochs=4, schedule="constant"), epoch) for epoch in range(4)} == {1.0}


def test_the_default_rate_suits_the_optimiser() -> None:
    assert [base_lr(TrainParams(optimiser=name)) for name in ("sgd", "adam", "adamw")] == [0.1, 1e-3, 1e-3]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epochs": 10, "milestones": (5, 20)}, "milestone 20 is never reached in 10 epochs"),
        ({"milestones": (9, 5)}, "positive and rising"),
        ({"milestones": (0, 5)}, "positive and rising"),
        ({"schedule": "cosine", "milestones": (5,)}, "milestones belong to schedule: steps"),
        ({"learning_rate": 0.1}, "learning_rate"),
        ({"epochs": 0}, "greater than or equal to 1"),
    ],
)
def test_bad_parameters_are_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrainParams(**given)


def test_bad_model_parameters_are_named(context: Make) -> None:
    with pytest.raises(UsageError, match=r"model 'tiny-cnn' does not take its parameters: widht") as caught:
        fresh_network(context(), "tiny-cnn", {"widht": 4})
    assert caught.value.fix == "robustkd describe model tiny-cnn"


# --- data --------------------------------------------------------------------------------------------------------------


def test_an_epoch_takes_every_row_once_in_an_order_of_its_own() -> None:
    first, again, second = (epoch_order(50, 8, 3, epoch) for epoch in (0, 0, 1))
    assert sorted(torch.cat(first).tolist()) == list(range(50))
    assert [len(part) for part in first] == [8, 8, 8, 8, 8, 8, 2]
    assert torch.cat(first).tolist() == torch.cat(again).tolist() != torch.cat(second).tolist()


def test_a_single_row_left_over_joins_the_batch_before_it() -> None:
    assert [len(part) for part in epoch_order(17, 8, 0, 0)] == [8, 9]
    assert [len(part) for part in epoch_order(1, 8, 0, 0)] == [1]


def test_taken_samples_are_the_arrays_in_unit_range() -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 2, 4, 4), dtype=np.uint8)
    arrays = Arrays(images, np.arange(9))
    x, y = Samples(arrays, torch.device("cpu")).take(torch.tensor([7, 0, 3]))
    assert torch.equal(x, torch.from_numpy(arrays.unit()[[7, 0, 3]]))
    assert y.tolist() == [7, 0, 3]


def test_crop_flip_is_a_shifted_and_possibly_mirrored_image_of_the_sample_alone() -> None:
    x, index = torch.rand(40, 2, 6, 7), torch.arange(100, 140)
    out = crop_flip(x, SampleRng(5, index, "augment"))
    seen = set()
    for image, found in zip(x, out, strict=True):
        padded = F.pad(image, [PADDING] * 4)
        where = [
            (down, right, flip)
            for down in range(2 * PADDING + 1)
            for right in range(2 * PADDING + 1)
            for flip in (False, True)
            for crop in [padded[:, down : down + 6, right : right + 7]]
            if torch.equal(crop.flip(2) if flip else crop, found)
        ]
        assert where
        seen.add(where[0])
    assert len({flip for _, _, flip in seen}) == 2
    assert len(seen) > 25
    assert torch.equal(crop_flip(x[7:9], SampleRng(5, index[7:9], "augment")), out[7:9])


# --- moving average ----------------------------------------------------------------------------------------------------


def test_the_moving_average_follows_its_recursion_with_the_early_warm_up() -> None:
    module = nn.BatchNorm1d(1)
    average = WeightAverage(module, decay=0.5)
    expected, values = 1.0, [3.0, -2.0, 5.0, 4.0, 0.0, 7.0, 1.0, 2.0, -1.0, 6.0]
    for step, value in enumerate(values, start=1):
        with torch.no_grad():
            module.weight.fill_(value)
            assert module.num_batches_tracked is not None
            module.num_batches_tracked.fill_(step)
        average.update(module)
        d = min(0.5, (1 + step) / (10 + step))
        expected = d * expected + (1 - d) * value
        assert average.weights["weight"].item() == pytest.approx(expected, rel=1e-6)
        assert average.weights["num_batches_tracked"].item() == step


# --- inner maximisation ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["uniform", "noise", "clean"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_inner_maximisation_climbs_inside_the_ball_and_leaves_no_trace(
    tiny: Make, minibatch: Minibatch, start: str, norm: str
) -> None:
    target = tiny()
    target.module.train()
    target.module.body[1].eval()  # a mode of its own, to be found again
    before = {name: tensor.clone() for name, tensor in target.module.state_dict().items()}
    eps = EPS if norm == "linf" else 1.0
    threat = ThreatModel(norm=norm, eps=eps)  # type: ignore[arg-type]
    adversary = Adversary.under(InnerMaximisation(start=start), threat)  # type: ignore[arg-type]
    passes = {"forward": 0, "weights": 0}
    target.module.register_forward_hook(lambda *_: passes.__setitem__("forward", passes["forward"] + 1))
    for parameter in target.module.parameters():
        parameter.register_hook(lambda _: passes.__setitem__("weights", passes["weights"] + 1))
    x = adversary(target, minibatch)
    change = (x - minibatch.x).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert size.max() <= eps + 1e-6
    assert 0 <= x.min() <= x.max() <= 1
    assert not x.requires_grad
    assert passes == {"forward": 10, "weights": 0}
    assert all(parameter.grad is None and parameter.requires_grad for parameter in target.module.parameters())
    assert target.module.training
    assert not target.module.body[1].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.module.state_dict().items())
    target.module.eval()
    with torch.no_grad():
        clean, adversarial = (F.cross_entropy(target(at), minibatch.y) for at in (minibatch.x, x))
    assert adversarial > clean + 0.1


def test_one_inner_step_is_the_closed_form(tiny: Make, minibatch: Minibatch) -> None:
    target = tiny()
    target.module.eval()
    x = Adversary.under(InnerMaximisation(steps=1, start="clean"), ThreatModel(eps=EPS))(target, minibatch)
    at = minibatch.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(target(at), minibatch.y), at)
    torch.testing.assert_close(x, (minibatch.x + EPS / 4 * gradient.sign()).clamp(0, 1))


def test_starts_differ_between_epochs_and_not_between_batches(tiny: Make, minibatch: Minibatch) -> None:
    adversary, target = Adversary.under(InnerMaximisation(steps=2), ThreatModel(eps=EPS)), tiny()
    m = minibatch
    whole = adversary(target, m)
    part = adversary(target, Minibatch(m.x[4:9], m.y[4:9], m.index[4:9], m.seed, m.epoch))
    torch.testing.assert_close(whole[4:9], part)
    assert not torch.equal(whole, adversary(target, Minibatch(m.x, m.y, m.index, m.seed, m.epoch + 1)))


def test_inner_maximisation_takes_the_campaigns_budget_unless_it_has_its_own() -> None:
    own = Adversary.under(InnerMaximisation(eps=0.4, step_size=0.3), ThreatModel(norm="l2", eps=EPS))
    assert (own.threat.norm, own.threat.eps, own.step_size) == ("l2", 0.4, 0.3)
    with pytest.raises(UsageError, match="PGD, which cannot respect a budget in l0"):
        Adversary.under(InnerMaximisation(), ThreatModel(norm="l0", eps=5))


# --- the loop ----------------------------------------------------------------------------------------------------------

SETTINGS = {"epochs": 4, "batch_size": 64, "lr": 0.05, "schedule": "cosine"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimiser": "adam", "lr": 0.01, "ema": 0.9},
        {"selection": "last", "augment": "crop-flip"},
        {"selection": "last", "swa": 0.4},
    ],
)
@pytest.mark.parametrize("died", ["in the middle of an epoch", "between epochs", "while logging"])
def test_a_killed_training_ends_with_the_same_bits(
    context: Make, tiny: Make, curve: Make, same_weights: Make, changes: dict[str, Any], died: str
) -> None:
    settings = TrainParams(**SETTINGS | changes)
    straight = curve()
    whole = train(context(folder="whole", log=straight), tiny(), Plain(), settings)
    broken = Plain(dies_at={"in the middle of an epoch": 7, "between epochs": 10}.get(died))  # 5 steps an epoch
    with pytest.raises(SystemExit):
        train(context(log=curve(until=2)), tiny(), broken, settings, checkpoint_seconds=0)
    again = curve()
    recipe = Plain()
    resumed = train(context(log=again), tiny(), recipe, settings)
    assert same_weights(whole, resumed)
    assert not resumed.module.training
    assert again.epochs == straight.epochs == [0, 1, 2, 3]
    assert again.numbers() == straight.numbers()
    assert recipe.steps == 20


def test_averaged_weights_are_the_mean_of_the_epochs_and_normalise_by_their_own_statistics(context: Make) -> None:
    settings = SETTINGS | {"schedule": "constant", "selection": "last", "weight_decay": 0.0}

    def trained(epochs: int, **changes: Any) -> ClassifierTarget:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
        target = ClassifierTarget(module, num_classes=10, input_shape=(1, 8, 8))
        return train(
            context(folder=f"{epochs}{changes}"), target, Plain(), TrainParams(**settings | changes | {"epochs": epochs})
        )

    averaged = trained(4, swa=0.5)  # epochs 2 and 3 of 0 to 3
    ends = [dict(trained(epochs).module.named_parameters()) for epochs in (3, 4)]
    for name, weight in averaged.module.named_parameters():
        torch.testing.assert_close(weight, (ends[0][name] + ends[1][name]) / 2)
    norm = averaged.module[2]
    given: FitContext = context()
    batches = [Samples(given.train, given.device).take(rows)[0] for rows in epoch_order(len(given.train), 64, given.seed, 3, 2)]
    with torch.no_grad():
        hidden = [averaged.module[:2](x) for x in batches]
    torch.testing.assert_close(norm.running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([h.var(0) for h in hidden]).mean(0))


def test_one_average_of_the_weights_at_most() -> None:
    with pytest.raises(ValidationError, match="ema and swa are two ways"):
        TrainParams(ema=0.9, swa=0.5)


def test_a_mid_epoch_checkpoint_is_taken_up_and_not_the_epochs_start(context: Make, tiny: Make) -> None:
    settings = TrainParams(**SETTINGS)
    with pytest.raises(SystemExit):
        train(context(), tiny(), Plain(dies_at=7), settings, checkpoint_seconds=0)

    class Counting(Plain):
        computed = 0

        def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
            Counting.computed += 1
            return super().loss(target, batch)

    Counting.__qualname__ = Plain.__qualname__
    train(context(), tiny(), Counting(), settings)
    assert Counting.computed == 20 - 7


def test_a_finished_training_is_not_trained_again(context: Make, tiny: Make, curve: Make, same_weights: Make) -> None:
    settings = TrainParams(**SETTINGS)
    done = train(context(), tiny(), Plain(), settings)
    log = curve()
    again = train(context(log=log), tiny(), Plain(dies_at=0), settings)
    assert same_weights(done, again)
    assert log.epochs == [0, 1, 2, 3]


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flipped(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


@pytest.mark.parametrize(
    ("damage", "said"), [(_cut, "is damaged"), (_flipped, "wrong checksum"), (lambda data: b"", "is damaged")]
)
def test_a_damaged_checkpoint_is_reported_and_ignored(
    context: Make,
    tiny: Make,
    same_weights: Make,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
    said: str,
) -> None:
    settings = TrainParams(**SETTINGS)
    whole = train(context(folder="whole"), tiny(), Plain(), settings)
    given: FitContext = context()
    with pytest.raises(SystemExit):
        train(given, tiny(), Plain(dies_at=10), settings)
    (file,) = given.checkpoints.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING):
        resumed = train(given, tiny(), Plain(), settings)
    assert said in caplog.text
    assert "training starts over" in caplog.text
    assert same_weights(whole, resumed)


def test_a_checkpoint_of_another_training_is_not_taken_up(
    context: Make, tiny: Make, same_weights: Make, caplog: pytest.LogCaptureFixture
) -> None:
    train(context(), tiny(), Plain(), TrainParams(**SETTINGS))
    other = TrainParams(**SETTINGS | {"lr": 0.01})
    fresh = train(context(folder="other"), tiny(), Plain(), other)
    with caplog.at_level(logging.WARNING):
        taken = train(context(), tiny(), Plain(), other)
    assert "belongs to another training" in caplog.text
    assert same_weights(fresh, taken)


def test_the_seed_decides_and_the_global_generator_is_left_alone(context: Make, tiny: Make, same_weights: Make) -> None:
    settings = TrainParams(**SETTINGS | {"epochs": 1})
    target = tiny()
    torch.manual_seed(11)
    state = torch.random.get_rng_state()
    first = train(context(folder="a"), target, Plain(), settings)
    assert torch.equal(torch.random.get_rng_state(), state)
    fresh = fresh_network(context(), "tiny-cnn", {})
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same_weights(fresh, fresh_network(context(), "tiny-cnn", {}))
    assert not same_weights(fresh, fresh_network(context(), "tiny-cnn", {}, role="teacher"))
    assert not same_weights(fresh, fresh_network(context(seed=1), "tiny-cnn", {}))
    torch.manual_seed(99)
    assert same_weights(first, train(context(folder="b"), tiny(), Plain(), settings))
    assert not same_weights(first, train(context(folder="c", seed=1), tiny(), Plain(), settings))


def test_an_epoch_of_sgd_is_the_closed_form(context: Make) -> None:
    # One full batch, a linear network: w <- w - lr * (grad + weight_decay * w), twice, with momentum.
    class Linear(Recipe):
        def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
            return F.cross_entropy(target(batch.x), batch.y), {}

    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
    nn.init.zeros_(module[1].weight)
    target = ClassifierTarget(module, num_classes=10, input_shape=(1, 8, 8))
    given: FitContext = context()
    settings = TrainParams(
        epochs=2, batch_size=10_000, lr=0.3, momentum=0.8, weight_decay=0.01, gamma=0.5, milestones=(1,), selection="last"
    )
    train(given, target, Linear(), settings)
    x, y = given.train.unit().reshape(-1, 64).astype(np.float64), np.eye(10)[given.train.labels]
    weight, velocity = np.zeros((10, 64)), np.zeros((10, 64))
    for lr in (0.3, 0.15):
        gradient = (numpy_softmax(x @ weight.T, 1) - y).T @ x / len(x) + 0.01 * weight
        velocity = 0.8 * velocity + gradient
        weight = weight - lr * velocity
    np.testing.assert_allclose(module[1].weight.detach().numpy(), weight, atol=1e-6)


def test_the_log_tells_each_epoch(context: Make, tiny: Make, curve: Make) -> None:
    log = curve()
    train(context(log=log), tiny(), Plain(threat=ThreatModel(eps=EPS)), TrainParams(**SETTINGS))
    expected = {"train_loss", "half", "validation_accuracy", "validation_robust_accuracy", "lr", "seconds"}
    assert all(set(row) == expected for row in log.metrics)
    assert [row["lr"] for row in log.metrics] == pytest.approx([0.05 * decay(TrainParams(**SETTINGS), e) for e in range(4)])
    assert log.metrics[-1]["half"] < log.metrics[0]["half"]


def test_a_loss_that_is_not_finite_stops_the_training_where_it_happens(context: Make, tiny: Make) -> None:
    class Explodes(Plain):
        def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
            loss, measured = super().loss(target, batch)
            return (loss * math.inf, measured) if self.steps == 7 else (loss, measured)

    target = tiny()
    with pytest.raises(TargetError, match=r"epoch 1, step 2: the loss is inf") as caught:
        train(context(), target, Explodes(), TrainParams(**SETTINGS))
    assert caught.value.fix == "lower lr (it is 0.05)"
    assert all(torch.isfinite(parameter).all() for parameter in target.module.parameters())


def test_logits_that_are_not_finite_in_the_inner_maximisation_are_placed_too(context: Make, tiny: Make) -> None:
    class Robust(Plain):
        def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
            adversary = Adversary.under(InnerMaximisation(steps=1), ThreatModel(eps=EPS))
            return F.cross_entropy(target(adversary(target, batch)), batch.y), {"half": batch.x.mean()}

    with pytest.raises(TargetError, match=r"training broke down in epoch 0, step \d+: the model returned NaN") as caught:
        train(context(), tiny(), Robust(), TrainParams(**SETTINGS | {"lr": 1e30}))
    assert caught.value.fix is not None
    assert "lower lr" in caught.value.fix


def test_bf16_trains_and_keeps_float32_weights(context: Make, tiny: Make, curve: Make) -> None:
    log = curve()
    target = train(context(log=log), tiny(), Plain(), TrainParams(**SETTINGS | {"precision": "bf16"}))
    assert {parameter.dtype for parameter in target.module.parameters()} == {torch.float32}
    assert log.metrics[-1]["train_loss"] < log.metrics[0]["train_loss"]


# --- selection ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selection", "scores", "chosen"),
    [
        ("best", [(0.1, 0.5), (0.6, 0.7), (0.4, 0.9), (0.5, 0.9)], 1),
        ("best", [(0.6, 0.7), (0.6, 0.8), (0.6, 0.8), (0.2, 1.0)], 2),
        ("weighted", [(0.6, 0.7), (0.5, 0.9), (0.55, 0.8), (0.1, 1.0)], 1),  # the best mean of both, not the most robust
        ("last", [(0.9, 0.9), (0.6, 0.8), (0.6, 0.8), (0.2, 0.1)], 3),
    ],
)
def test_the_deployed_epoch(
    context: Make,
    tiny: Make,
    monkeypatch: pytest.MonkeyPatch,
    selection: str,
    scores: list[tuple[float, float]],
    chosen: int,
) -> None:
    seen: list[dict[str, Tensor]] = []

    def scripted(self: Validation, target: ClassifierTarget) -> dict[str, float]:
        seen.append({name: tensor.clone() for name, tensor in target.module.state_dict().items()})
        robust, clean = scores[len(seen) - 1]
        return {"validation_accuracy": clean, "validation_robust_accuracy": robust}

    monkeypatch.setattr(Validation, "measure", scripted)
    target = train(context(), tiny(), Plain(), TrainParams(**SETTINGS | {"selection": selection, "ema": 0.9}))
    assert all(torch.equal(tensor, seen[chosen][name]) for name, tensor in target.module.state_dict().items())


def test_selection_has_nothing_but_training_and_validation_data() -> None:
    assert {field.name for field in fields(FitContext)} == {
        *(
            "train",
            "validation",
            "input_shape",
            "num_classes",
            "threat",
            "targets",
            "seed",
            "device",
            "checkpoints",
            "log",
            "classes",
            "outputs_known",
            "bounds",
            "label",
        )
    }


def test_validation_is_measured_by_the_margin_on_a_capped_sample(context: Make, tiny: Make) -> None:
    given: FitContext = context()
    x = torch.from_numpy(given.validation.unit())
    labels = torch.from_numpy(given.validation.labels)
    # Logits so large that the cross entropy has no gradient left: the margin must not be deceived.
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(module[1].bias)
    means = torch.stack([x[labels == label].mean(0).flatten() for label in range(10)])
    with torch.no_grad():
        module[1].weight.copy_(1e5 * (means - means.mean(0)))
        module[1].bias.copy_(-5e4 * (means**2).sum(1))
    target = ClassifierTarget(module, num_classes=10, input_shape=(1, 8, 8))
    threat = ThreatModel(eps=0.3)
    measured = Validation(given, 1000, threat).measure(target)
    with torch.no_grad():
        assert measured["validation_accuracy"] == pytest.approx(float((target(x).argmax(1) == labels).float().mean()))
    assert measured["validation_accuracy"] > 0.7
    batch = Batch(x, labels, torch.arange(len(x)))
    deceived = PGD(PGDParams(steps=10)).run(target, batch, threat, SampleRng(0, batch.index))
    assert measured["validation_robust_accuracy"] < 0.2 < float((~deceived.success).float().mean())
    capped = Validation(given, 7, None).measure(target)
    assert set(capped) == {"validation_accuracy"}
    assert (7 * capped["validation_accuracy"]).is_integer()


@pytest.mark.parametrize("rule", [torch.optim.SGD, partial(torch.optim.SGD, momentum=0.9), torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("before", [0, 3])
def test_an_optimiser_goes_on_from_its_tensors_as_it_would_have(
    rule: Callable[..., torch.optim.Optimizer], before: int
) -> None:
    """Also before its first step, when it has no state, and where some of the state (SGD's momentum) is never there."""

    def steps(weights: Sequence[Tensor], optimiser: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            for number, weight in enumerate(weights):
                weight.grad = torch.full_like(weight, float(step - number))
            optimiser.step()

    weights = [torch.ones(2, requires_grad=True), torch.zeros(3, requires_grad=True)]
    whole = rule(weights, lr=0.1)
    steps(weights, whole, 0, before)
    copies = [weight.detach().clone().requires_grad_() for weight in weights]
    resumed = rule(copies, lr=0.1)
    load_optimiser_tensors(resumed, {name: tensor.clone() for name, tensor in optimiser_tensors(whole).items()})
    steps(weights, whole, before, before + 3)
    steps(copies, resumed, before, before + 3)
    assert all(torch.equal(weight, other) for weight, other in zip(weights, copies, strict=True))
