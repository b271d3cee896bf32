"""Minimum-norm attacks on linear models, where the nearest adversarial point is known in closed form.

For logits z = Wx + b the boundary to class j is a hyperplane, at distance (z_y - z_j) / ||w_y - w_j||_dual; the optimum is
the smallest over j, as long as the pixel range is not reached.
"""

import math

import pytest
import torch
from torch import nn

from robustkd.attacks.image.minimum_norm.cw_l2 import CWL2
from robustkd.attacks.image.minimum_norm.cw_linf import CWLinf
from robustkd.attacks.image.minimum_norm.ddn import DDN
from robustkd.attacks.image.minimum_norm.deepfool import DeepFool
from robustkd.attacks.image.minimum_norm.ead import EAD
from robustkd.attacks.image.minimum_norm.fab import FAB, FABT
from robustkd.attacks.image.minimum_norm.fmn import FMN
from robustkd.attacks.image.sparse.sigma_zero import SigmaZero
from robustkd.contracts import Batch, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.targets import ClassifierTarget

DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}
CASES = [
    (CWL2, {}, "l2"),
    (CWLinf, {}, "linf"),
    (DDN, {"steps": 200}, "l2"),
    (EAD, {}, "l1"),
    *[(FMN, {"norm": norm, "steps": 300}, norm) for norm in ("linf", "l2", "l1")],
    *[(FAB, {"norm": norm}, norm) for norm in ("linf", "l2", "l1")],
    *[(FABT, {"norm": norm}, norm) for norm in ("linf", "l2", "l1")],
    *[(DeepFool, {"norm": norm}, norm) for norm in ("linf", "l2")],
]


def problem(dimension, count, classes, spread=0.1):
    """A random linear model, and samples in the middle of the pixel range, ``spread`` apart in each pixel."""
    torch.manual_seed(dimension + count)
    net = nn.Sequential(nn.Flatten(), nn.Linear(dimension, classes)).eval()
    x = (torch.rand(4 * count + 4, 1, 1, dimension) - 0.5) * spread + 0.5
    with torch.no_grad():
        net[1].bias.zero_()
        net[1].bias.copy_(-net(torch.full_like(x[:1], 0.5))[0])  # the middle of the pixel range lies on every boundary
    y = net(x).argmax(1)
    far = optimum(net, x, y, "l2").argsort(descending=True)[:count]
    return net, x[far], y[far]


def optimum(net, x, y, norm):
    weight = net[1].weight.detach()
    gaps = net(x).gather(1, y[:, None]) - net(x)
    slopes = torch.linalg.vector_norm(weight[y][:, None] - weight[None], DUAL[norm], dim=2)
    return (gaps / slopes).scatter(1, y[:, None], torch.inf).amin(1).detach()


def found_by(attack, net, x, y, index=None):
    target = ClassifierTarget(net, num_classes=net[1].out_features, input_shape=x.shape[1:])
    batch = Batch(x, y, torch.arange(len(x)) if index is None else index)
    threat = ThreatModel(attack.norms[0], 1.0)
    return attack.run(target, batch, threat, SampleRng(0, batch.index))


@pytest.mark.parametrize(("kind", "params", "norm"), CASES, ids=lambda value: getattr(value, "__name__", str(value)))
@pytest.mark.parametrize(
    ("dimension", "count", "classes", "spread"),
    [
        (10, 20, 3, 0.1),
        (20, 10, 10, 0.01),
        (100, 1, 5, 0.1),
        (30, 5, 2, 0.01),
        pytest.param(784, 4, 5, 0.1, marks=pytest.mark.slow),
    ],
)
def test_near_the_optimum(kind, params, norm, dimension, count, classes, spread):
    net, x, y = problem(dimension, count, classes, spread)
    found = found_by(kind(kind.Params(**params)), net, x, y)
    assert found.success.all()
    assert (net(found.adversarial).argmax(1) != y).all()
    order = {"linf": float("inf"), "l2": 2, "l1": 1}[norm]
    length = torch.linalg.vector_norm((found.adversarial - x).flatten(1), order, dim=1)
    best = optimum(net, x, y, norm)
    assert (length >= best * 0.995).all()  # nothing is nearer than the optimum: the formula is right
    assert (length <= best * 1.25).all(), float((length / best).max())


@pytest.mark.parametrize(
    "attack", [FMN(FMN.Params(norm="l0", steps=100)), SigmaZero(SigmaZero.Params(steps=300))], ids=["fmn", "sigma-zero"]
)
@pytest.mark.parametrize(("shape", "count", "classes"), [((1, 1, 20), 10, 3), ((1, 28, 28), 2, 10), ((3, 6, 6), 5, 2)])
def test_the_fewest_pixels(attack, shape, count, classes):
    """A pixel gains sum_c |w_c| * room_c on its way to the range; the steepest ones sum up to the gap first."""
    torch.manual_seed(count)
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes)).eval()
    with torch.no_grad():
        net[1].bias[0] += 0.6
    x = torch.rand(20 * count, *shape)
    x = x[net(x).argmax(1) == 0][:count]
    y = torch.zeros(len(x), dtype=torch.long)
    slopes = (net[1].weight - net[1].weight[0]).detach()[1:, None]
    room = torch.where(slopes > 0, 1 - x.flatten(1), x.flatten(1))
    gains = (slopes.abs() * room).view(classes - 1, len(x), shape[0], -1).sum(2).sort(descending=True).values.cumsum(2)
    logits = net(x).detach()
    best = ((gains <= (logits[:, :1] - logits[:, 1:]).T[..., None]).sum(2) + 1).amin(0)
    assert best.max() > 2
    found = found_by(attack, net, x, y)
    assert (net(found.adversarial).argmax(1) != y).all()
    changed = ((found.adversarial - x) != 0).any(1).flatten(1).sum(1)
    assert (changed >= best).all()
    assert (changed <= best * 1.25).all(), (changed, best)


@pytest.mark.parametrize(("kind", "params", "norm"), CASES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_sample_is_on_its_own_and_a_hopeless_one_comes_back_clean(kind, params, norm):
    net, x, y = problem(12, 8, 3)
    y[0] = (y[0] + 1) % 3  # misclassified as it comes
    attack = kind(kind.Params(**params | {"steps": 30}))
    whole = found_by(attack, net, x, y)
    order = torch.tensor([5, 2, 0])
    some = found_by(attack, net, x[order], y[order], index=order)
    assert torch.allclose(whole.adversarial[order], some.adversarial, atol=1e-5)
    assert torch.equal(whole.adversarial[0], x[0])
    assert whole.forwards[0] == 1
    constant = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with torch.no_grad():
        constant[1].weight.zero_()
        constant[1].bias.copy_(torch.tensor([5.0, 0.0, 0.0]))
    lost = found_by(attack, constant, x, torch.zeros(8, dtype=torch.long))
    assert not lost.success.any()
    assert torch.equal(lost.adversarial, x)
