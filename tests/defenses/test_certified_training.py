"""Training on bounds: the loss is an upper bound of the loss in the ball, equal to what can be written down, and its controls are equal."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustkd.contracts import ThreatModel
from robustkd.defenses.image.certified.crown_ibp import CrownIBPParams, CrownIBPRecipe
from robustkd.defenses.image.certified.ibp import IBPParams, IBPRecipe
from robustkd.defenses.image.certified.sabr import SABRParams, SABRRecipe
from robustkd.targets import ClassifierTarget

EPS = 0.05
THREAT = ThreatModel("linf", EPS)
GROWN = {"model": "tiny-cnn", "epochs": 1, "warm_up": 0, "ramp": 0}


def convolutional(seed=0):
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 12), nn.ReLU(), nn.Linear(12, 10)
    )
    return ClassifierTarget(module.train(), num_classes=10, input_shape=(1, 8, 8))


def loss_of(recipe, params, target, batch):
    loss, logged = recipe(THREAT, params, 1).loss(target, batch)
    return loss, logged["loss_bound"]


RECIPES = [
    (IBPRecipe, IBPParams(**GROWN)),
    (CrownIBPRecipe, CrownIBPParams(**GROWN, beta_end=0.5)),
    (CrownIBPRecipe, CrownIBPParams(**GROWN, beta_end=1.0)),
]


@pytest.mark.parametrize(("recipe", "params"), RECIPES)
def test_the_bound_is_above_the_loss_of_every_point_of_the_ball(recipe, params, minibatch):
    target = convolutional()
    target.module(minibatch.x)  # the running statistics are the bounds' own
    _, bound = loss_of(recipe, params, target, minibatch)
    target.module.eval()
    for seed in range(20):
        torch.manual_seed(seed)
        point = (minibatch.x + EPS * torch.empty_like(minibatch.x).uniform_(-1, 1).sign()).clamp(0, 1)
        assert F.cross_entropy(target(point), minibatch.y) < bound + 1e-5


def test_of_a_linear_network_it_is_the_loss_at_the_worst_corner_of_each_class(linear, minibatch):
    target = linear(0)
    layer = next(part for part in target.module.modules() if isinstance(part, nn.Linear))
    low, high = (minibatch.x - EPS).clamp(0, 1).flatten(1), (minibatch.x + EPS).clamp(0, 1).flatten(1)
    rows = layer.weight.unsqueeze(0) - layer.weight[minibatch.y].unsqueeze(1)  # (B, K, D), of z_j - z_y
    worst = (rows.clamp_min(0) * high.unsqueeze(1) + rows.clamp_max(0) * low.unsqueeze(1)).sum(2)
    worst = worst + layer.bias - layer.bias[minibatch.y].unsqueeze(1)
    expected = F.cross_entropy(worst, minibatch.y)
    loss, bound = loss_of(IBPRecipe, IBPParams(**GROWN), target, minibatch)
    assert torch.allclose(bound, expected, atol=1e-5)
    assert torch.allclose(loss, (expected + F.cross_entropy(target(minibatch.x), minibatch.y)) / 2, atol=1e-5)
    (gradient,) = torch.autograd.grad(bound, layer.weight)
    (wanted,) = torch.autograd.grad(expected, layer.weight)
    assert torch.allclose(gradient, wanted, atol=1e-5)
    for recipe, params in RECIPES[1:]:
        assert torch.allclose(loss_of(recipe, params, target, minibatch)[1], expected, atol=1e-4)


def test_linear_bounds_are_below_those_of_intervals_in_loss(minibatch):
    target = convolutional()
    target.module.eval()
    losses = [loss_of(recipe, params, target, minibatch)[1].item() for recipe, params in RECIPES]
    assert losses[2] < losses[1] < losses[0]


def test_the_controls(minibatch):
    target = convolutional()
    target.module.eval()  # no running statistics move between two losses
    clean = F.cross_entropy(target(minibatch.x), minibatch.y)
    ibp = loss_of(IBPRecipe, IBPParams(**GROWN, kappa_end=0.0), target, minibatch)[0]
    assert torch.allclose(loss_of(IBPRecipe, IBPParams(**GROWN, kappa_end=1.0), target, minibatch)[0], clean)
    assert torch.allclose(loss_of(CrownIBPRecipe, CrownIBPParams(**GROWN, beta_end=0.0), target, minibatch)[0], ibp)
    assert torch.allclose(loss_of(SABRRecipe, SABRParams(**GROWN, lam=1.0, l1=0.0), target, minibatch)[0], ibp)
    small = loss_of(SABRRecipe, SABRParams(**GROWN, lam=0.2, l1=0.0), target, minibatch)[0]
    assert clean < small < ibp
    weights = sum(part.weight.abs().sum() for part in target.module if isinstance(part, nn.Linear | nn.Conv2d))
    with_l1 = loss_of(SABRRecipe, SABRParams(**GROWN, lam=1.0, l1=0.01), target, minibatch)[0]
    assert torch.allclose(with_l1, ibp + 0.01 * weights)


def test_the_radius_and_the_weight_grow_step_by_step(minibatch):
    params = IBPParams(model="tiny-cnn", epochs=10, warm_up=1, ramp=2, kappa_end=0.5)
    assert [params.progress(epochs) for epochs in (0, 0.5, 1, 1.5, 2, 3, 9)] == [0, 0, 0, 0.25, 0.5, 1, 1]
    whole = IBPParams(model="tiny-cnn", epochs=60)
    assert whole.progress(2) == 0
    assert whole.progress(7) == pytest.approx(0.5)
    assert whole.progress(12) == 1
    recipe, target = IBPRecipe(THREAT, params, 4), convolutional()
    target.module.eval()
    losses = []
    for _ in range(14):
        losses.append(recipe.loss(target, minibatch)[1]["loss_bound"].item())
        recipe.after_step({})
    assert losses[0] == losses[4]  # not begun
    assert losses[4] < losses[6] < losses[11] < losses[12] == losses[13]
    again = IBPRecipe(THREAT, params, 4)
    again.load_state_dict(recipe.state_dict())
    assert again.step == 14


def test_a_larger_radius_may_be_trained_for(minibatch):
    target = convolutional()
    target.module.eval()
    wide = loss_of(IBPRecipe, IBPParams(**GROWN, eps=0.1), target, minibatch)[1]
    assert wide > loss_of(IBPRecipe, IBPParams(**GROWN), target, minibatch)[1]
    assert torch.equal(
        wide, IBPRecipe(ThreatModel("linf", 0.1), IBPParams(**GROWN), 1).loss(target, replace(minibatch))[1]["loss_bound"]
    )
