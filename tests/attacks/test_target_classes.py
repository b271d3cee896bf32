"""The order in which wrong classes are aimed at, on a linear network of many classes: every distance is known there."""

import pytest
import torch
from torch import nn

import robustkd
from robustkd.attacks.image.engine.oracle import Oracle
from robustkd.attacks.image.engine.target_classes import target_classes
from robustkd.contracts import Batch
from robustkd.targets import ClassifierTarget

CLASSES, FLAT, STEEP = 30, 12, 29  # twelve classes of high logits and tiny slopes; one of the lowest logit, and steep
DUAL = {"linf": 1, "l2": 2, "l1": torch.inf}


@pytest.fixture
def many():
    """A linear network of 30 classes on 16 pixels, two samples of class 0, and the margin and slope of each other class."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))
    with torch.no_grad():
        net[1].weight.copy_(0.02 * torch.randn(CLASSES, 16))
        net[1].weight[STEEP] += torch.tensor([1.0, -1.0] * 8)
        net[1].bias.copy_(-2.0 - 0.01 * torch.arange(CLASSES))
        net[1].bias[0], net[1].bias[1 + FLAT : STEEP] = 0.0, -8.0
    x = torch.full((2, 1, 4, 4), 0.5)
    x[1, 0, 0] = 0.4
    return net.eval(), x, torch.zeros(2, dtype=torch.int64)


def distances(net, x, norm):
    """(B, K - 1) in closed form: the margin over the dual norm of the slope."""
    weight, logits = net[1].weight.detach(), net(x).detach()
    return (logits[:, :1] - logits[:, 1:]) / (weight[1:] - weight[:1]).norm(DUAL[norm], dim=1)


@pytest.mark.parametrize("norm", DUAL)
def test_malt_ranks_the_classes_by_their_distance(many, norm):
    net, x, y = many
    oracle = Oracle(ClassifierTarget(net, num_classes=CLASSES, input_shape=(1, 4, 4)), Batch(x, y, torch.arange(2)))
    ranked = target_classes(oracle, x, net(x).detach(), torch.tensor([1]), norm=norm, order="malt", candidates=29)
    assert ranked[1].tolist() == (1 + distances(net, x, norm)[1].argsort()).tolist()
    assert ranked[0].tolist() == (1 + net(x)[0, 1:].argsort(descending=True)).tolist()  # was not asked about
    assert oracle.forwards.tolist() == [0, 1]
    assert oracle.backwards.tolist() == [0, 29]


@pytest.mark.parametrize("norm", DUAL)
def test_the_nearest_class_is_found_though_it_is_not_among_the_nine_likeliest(many, norm):
    net, x, y = many
    by_distance = distances(net, x, norm)
    assert (by_distance.argmin(1) == STEEP - 1).all()
    assert (net(x)[:, 1:].argsort(dim=1, descending=True)[:, :9] != STEEP - 1).all()
    eps = 1.3 * float(by_distance.min(1).values.max())
    assert eps < 0.7 * float(by_distance.topk(2, 1, largest=False).values[:, 1].min())
    broken = {
        order: robustkd.attack("apgd-t", net, x, y, norm=norm, eps=eps, steps=30, order=order).success.tolist()
        for order in ("logits", "malt")
    }
    assert broken == {"logits": [False, False], "malt": [True, True]}
    near = robustkd.attack("fab-t", net, x, y, eps=1.0, params={"norm": norm, "steps": 10, "targets": 1, "order": "malt"})
    lengths = (near.adversarial - x).flatten(1).norm({"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=1)
    assert torch.allclose(lengths, by_distance.min(1).values, rtol=0.03)


def test_candidates_bound_the_cost(many):
    net, x, y = many
    passes = [
        robustkd.attack("apgd-t", net, x, y, eps=1e-3, steps=2, targets=1, order="malt", candidates=c).outcome.backwards
        for c in (5, 10)
    ]
    assert (passes[1] - passes[0]).tolist() == [5, 5]
