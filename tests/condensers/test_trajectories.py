"""Trajectory matching: the hyper-gradient by hand and by finite differences, experts, windows, learnt labels."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from robustkd import plugins
from robustkd.condensers.engine import unrolled
from robustkd.condensers.engine.experts import (
    ExpertParams,
    Flat,
    clean_loss,
    direction,
    expert_builder,
    flat_weights,
    trajectories,
)
from robustkd.condensers.engine.unrolled import _dealt
from robustkd.condensers.trajectories.ast import next_to_centres
from robustkd.condensers.trajectories.datm import DATM, DATMParams
from robustkd.condensers.trajectories.mat import MAT, MATParams
from robustkd.condensers.trajectories.mtt import MTT, MTTParams
from robustkd.contracts import UsageError
from robustkd.defenses.training.batches import Minibatch
from robustkd.plugin_kit import fixtures
from robustkd.targets import ClassifierTarget

PLAIN = {"augment": (), "max_start": 0, "expert_epochs": 1, "experts": {"epochs": 2, "count": 1}}
SMALL = {
    "model": "tiny-cnn",
    "steps": 3,
    "images_per_class": 1,
    "student_steps": 2,
    "max_start": 1,
    "experts": {"count": 2, "epochs": 3, "batch_size": 40, "lr": 0.05},
}


def condensed(condenser, log=lambda epoch, metrics: None, **given):
    with fixtures.context(log=log, **given) as context:
        return plugins.make("defenses", {"kind": "condensed-data", "condenser": condenser}).fit(context).arrays


class OneLayer(nn.Module):
    """z = W x, two classes of three pixels."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2, bias=False, dtype=torch.float64)

    def forward(self, x):
        return self.linear(x.flatten(1))


def one_layer():
    torch.manual_seed(0)
    return ClassifierTarget(OneLayer(), num_classes=2, input_shape=(1, 1, 3))


def learnt(images, size=0.5):
    return {"images": images, "student_lr": torch.tensor(size, dtype=torch.float64, requires_grad=True)}


def test_one_step_of_a_quadratic_has_its_hyper_gradient_in_closed_form(monkeypatch):
    """l(theta) = 1/2 || x - theta ||^2: theta_1 = theta_0 + a (x - theta_0), dL/dx = 2 a (theta_1 - theta*) / || theta_0 - theta* ||^2."""
    monkeypatch.setattr(unrolled, "F", SimpleNamespace(cross_entropy=lambda z, y: 0.5 * z.square().sum()))
    start, goal, x = (torch.tensor(v, dtype=torch.float64) for v in ([1.0, 2.0], [3.0, 1.0], [4.0, -1.0]))
    x.requires_grad_()
    flat = lambda theta, images: images.flatten() - theta  # noqa: E731
    pixels = x.view(1, 1, 1, 2)
    given = learnt(pixels)
    method = MTT(MTTParams(**PLAIN, student_steps=1))
    loss = method.matched(flat, torch.stack([start, goal]), given, torch.tensor([0]), torch.Generator())
    end, away = start + 0.5 * (x.detach() - start), (start - goal).square().sum()
    assert torch.allclose(loss, (end - goal).square().sum() / away)
    by_pixels, by_size = torch.autograd.grad(loss, [x, given["student_lr"]])
    assert torch.allclose(by_pixels, 2 * 0.5 * (end - goal) / away)
    assert torch.allclose(by_size, 2 * ((end - goal) * (x.detach() - start)).sum() / away)


def matched(images, size=0.3, **params):
    target = one_layer()
    flat, theta = Flat(target), flat_weights(target)
    goal = torch.stack([theta, theta + torch.linspace(-1, 1, 6, dtype=torch.float64)])
    labels = torch.tensor([0, 1])
    method = MTT(MTTParams(**PLAIN | {"student_steps": 2} | params))
    return method.matched(flat, goal, learnt(images, size), labels, torch.Generator().manual_seed(0))


def test_the_gradient_through_two_steps_is_that_of_finite_differences():
    x = torch.rand(2, 1, 1, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda images: matched(images), (x,))
    assert torch.autograd.gradcheck(lambda images: matched(images, batch_size=1, fyi=True), (x,))


def test_a_student_that_does_not_move_has_loss_one():
    assert matched(torch.rand(2, 1, 1, 3, dtype=torch.float64), size=0.0).item() == pytest.approx(1, abs=1e-4)


def test_fyi_doubles_the_set_that_the_student_sees():
    x = torch.rand(2, 1, 1, 3, dtype=torch.float64)
    target, both = one_layer(), torch.cat([x, x.flip(3)])
    theta = flat_weights(target)
    goal, y = torch.stack([theta, theta + 1]), torch.tensor([0, 1])

    def loss(images, labels, fyi):
        method = MTT(MTTParams(**PLAIN | {"student_steps": 1}, fyi=fyi))
        return method.matched(Flat(target), goal, learnt(images), labels, torch.Generator())

    assert torch.allclose(loss(x, y, True), loss(both, torch.cat([y, y]), False))


def test_gsam_is_its_definition_and_plain_descent_without_a_radius():
    target = one_layer()
    batch = Minibatch(torch.rand(5, 1, 1, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1]), torch.arange(5), 0, 0)
    weight = target.module.linear.weight

    def gradient(at):
        return torch.autograd.grad(F.cross_entropy(batch.x.flatten(1) @ at.T, batch.y), at)[0]

    before = weight.detach().clone()
    g = gradient(weight)
    _, (plain,) = direction(target, batch, clean_loss, 0, 0.4)
    assert torch.equal(plain, g)
    _, (found,) = direction(target, batch, clean_loss, 0.7, 0.4)
    moved = before + 0.7 * before.square() * g / (before.abs() * g).norm()
    p = gradient(moved.requires_grad_())
    across = g - (g * p).sum() / p.square().sum() * p
    assert torch.allclose(found, p - 0.4 * across)
    assert (weight - before).abs().max() < 1e-15  # left as it was, but for rounding


def experts(**settings):
    with fixtures.context() as context:
        build = expert_builder(context, "tiny-cnn", {})
        return trajectories(context, build, ExpertParams(count=1, epochs=2, batch_size=40, lr=0.05, **settings))[0]


def test_an_expert_is_kept_after_each_epoch_and_a_radius_of_zero_is_plain_descent_bit_for_bit():
    plain = experts()
    assert plain.shape[0] == 3
    assert torch.equal(experts(rho=0.0, alpha=0.9), plain)
    assert torch.equal(experts(clip=1e6), plain)
    assert not torch.equal(experts(rho=0.5), plain)


def test_clip_bounds_each_step_and_the_average_lags_behind():
    plain, clipped, smooth = experts(), experts(clip=1e-3), experts(ema=0.9)
    steps = 2 * math.ceil(160 / 40)
    assert (clipped[-1] - clipped[0]).norm() <= 1e-3 * steps + 1e-6
    assert (smooth[-1] - smooth[0]).norm() < (plain[-1] - plain[0]).norm()


def test_mat_trains_its_experts_at_the_examples_of_the_threat_model():
    with fixtures.context() as context:
        loss, told = MAT(MATParams()).expert_loss(context)
        target = fixtures.classifier()
        x, y = torch.from_numpy(context.train.unit()[:20]), torch.from_numpy(context.train.labels[:20])
        batch = Minibatch(x, y, torch.arange(20), 0, 0)
        assert loss(target, batch) > 1.5 * clean_loss(target, batch)
        assert "0.1" in told
    assert MAT.uses_threat
    assert not MTT.uses_threat


def test_the_window_of_datm_grows_and_then_stays():
    method = DATM(DATMParams(min_start=1, first_max_start=2, max_start=12, expansion=10))
    assert [method.window(step) for step in (0, 1, 5, 10, 99)] == [(1, 2), (1, 3), (1, 7), (1, 12), (1, 12)]


def test_datm_starts_with_right_answers_and_learns_distributions():
    still = {**SMALL, "kind": "datm", "first_max_start": 0, "label_lr": 0, "threshold": 1e9, "ema": None}
    arrays, moved = condensed(still), condensed(still | {"label_lr": 1e4})
    assert np.allclose(arrays.soft.sum(1), 1, atol=1e-5)
    assert np.abs(arrays.soft - moved.soft).max() > 1e-4
    assert sorted(arrays.labels) == list(range(10))  # of the images, whatever the distributions say


def test_datm_refuses_what_lies_above_the_threshold():
    base = {**SMALL, "kind": "datm", "first_max_start": 0, "lr": 1e3, "step_lr": 0, "ema": None}
    refused, start = condensed(base | {"threshold": 1e-9}), condensed(base | {"threshold": 1e-9, "steps": 1})
    assert np.array_equal(refused.images, start.images)
    assert not np.array_equal(condensed(base | {"threshold": 1e9}).images, start.images)


def test_ast_without_its_points_is_mtt_bit_for_bit():
    mtt = SMALL | {"batch_size": 10, "images_per_class": 2}
    off = {"representative": False, "balanced": False, "intermediate": False, "perturbation": 0}
    ast = mtt | off | {"experts": SMALL["experts"] | {"clip": None, "gradient_penalty": 0}}
    assert condensed(ast | {"kind": "ast"}).digest() == condensed(mtt | {"kind": "mtt"}).digest()
    for change in (
        {"representative": True},
        {"balanced": True},
        {"intermediate": True, "expert_epochs": 2},
        {"perturbation": 0.5},
    ):
        assert condensed(ast | change | {"kind": "ast"}).digest() != condensed(mtt | {"kind": "mtt"}).digest(), change


def test_ftd_without_radius_and_average_is_mtt_bit_for_bit():
    ftd = SMALL | {"kind": "ftd", "ema": None, "experts": SMALL["experts"] | {"rho": 0}}
    assert condensed(ftd).digest() == condensed(SMALL | {"kind": "mtt"}).digest()


def test_dealt_rows_take_turns_and_are_the_same_rows():
    labels = torch.tensor([0] * 4 + [1] * 4)
    order = _dealt(torch.randperm(8, generator=torch.Generator().manual_seed(0)), labels)
    assert sorted(order.tolist()) == list(range(8))
    assert all(len(set(labels[pair].tolist())) == 2 for pair in order.split(2))


def test_representatives_are_different_and_next_to_the_clusters():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(centre, 0.01, (5, 2)) for centre in (0, 5, 10)])
    found = next_to_centres(points, 3, np.random.default_rng(2))
    assert sorted(found // 5) == [0, 1, 2]
    assert len(set(next_to_centres(points, 15, rng).tolist())) == 15


def test_the_loss_falls_on_the_way():
    log = []
    settings = SMALL | {"kind": "mtt", "steps": 40, "images_per_class": 2, "lr": 30.0, "student_lr": 0.05, "augment": ()}
    condensed(settings, log=lambda epoch, metrics: log.append(metrics.get("matching_loss")))
    losses = [value for value in log if value is not None]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3])


def test_experts_that_are_too_short_and_networks_with_statistics_are_refused():
    with pytest.raises(UsageError, match="have no 2 epochs behind epoch 2"):
        condensed(SMALL | {"kind": "mtt", "max_start": 2})
    with pytest.raises(UsageError, match="statistics of its data"):
        condensed(SMALL | {"kind": "mtt", "model": "convnet", "model_params": {"norm": "batch", "width": 4}})
