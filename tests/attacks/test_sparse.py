"""Attacks in l0: beside exhaustive search and closed forms on tiny problems, and beside a blind choice of pixels."""

import itertools

import pytest
import torch
from torch import nn

import robustkd
from robustkd.attacks.image.engine.ascent import AttackState
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.sparse.spgd import SPGDStep
from robustkd.contracts import Batch, RobustkdError, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.plugins import make
from robustkd.scoring.distances import distance, random_offsets
from robustkd.targets import ClassifierTarget

FIXED = [
    {"kind": "spgd"},
    {"kind": "spgd", "projected": True},
    {"kind": "sparse-rs", "queries": 600},
    {"kind": "pgd0"},
    {"kind": "autoattack", "steps": 10, "queries": 300},
    {"kind": "autoattack", "version": "adaptive", "steps": 20, "queries": 300},
]


def named(spec):
    return "-".join(str(value) for value in spec.values())


def network(pixels, hidden=12, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden), nn.Tanh(), nn.Linear(hidden, 3))
    return net.eval().requires_grad_(False)


def attacked(spec, net, x, y, eps, goals=None, each=None):
    batch = Batch(x, y, torch.arange(len(x)), goals=goals, eps=each)
    target = ClassifierTarget(net, num_classes=3, input_shape=x.shape[1:])
    threat = ThreatModel("l0", eps, goal="untargeted" if goals is None else "targeted")
    return make("attacks", spec).run(target, batch, threat, SampleRng(0, batch.index))


def corner_exists(net, x, y, count):
    """(N,) bool: whether setting ``count`` pixels to 0 or 1 changes the decision, by trying all."""
    found = torch.zeros(len(x), dtype=torch.bool)
    for where in itertools.combinations(range(x[0].numel()), count):
        for colours in itertools.product((0.0, 1.0), repeat=count):
            tried = x.flatten(1).clone()
            tried[:, list(where)] = torch.tensor(colours)
            found |= net(tried.view_as(x)).argmax(1) != y
    return found


def linear(shape, seed=0):
    """A linear model of three classes, and for 12 samples the fewest pixels that change its decision, in closed form."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), 3)).eval().requires_grad_(False)
    net[1].bias[0] += 0.6
    x = torch.rand(200, *shape)
    x = x[net(x).argmax(1) == 0][:12]
    slopes = (net[1].weight - net[1].weight[0])[1:, None]
    room = torch.where(slopes > 0, 1 - x.flatten(1), x.flatten(1))
    gains = (slopes.abs() * room).view(2, len(x), shape[0], -1).sum(2).sort(descending=True).values.cumsum(2)
    logits = net(x)
    fewest = ((gains <= (logits[:, :1] - logits[:, 1:]).T[..., None]).sum(2) + 1).amin(0)
    return net, x, torch.zeros(len(x), dtype=torch.long), fewest


@pytest.mark.parametrize("spec", FIXED, ids=named)
@pytest.mark.parametrize("shape", [(1, 1, 12), (3, 4, 4)])
def test_the_fewest_pixels_of_a_linear_model_are_enough_and_one_less_is_not(spec, shape):
    net, x, y, fewest = linear(shape)
    assert fewest.max() > 1
    enough = attacked(spec, net, x, y, 9.0, each=fewest.float() + 0.5)  # half a pixel is none
    assert (distance(enough.adversarial - x, "l0") <= fewest).all()
    assert torch.equal(net(enough.adversarial).argmax(1) != y, enough.success)
    assert enough.success.float().mean() >= (0.3 if spec["kind"] == "pgd0" else 0.9), enough.success
    less = attacked(spec, net, x, y, 9.0, each=fewest.float() - 1)
    assert not less.success.any()


@pytest.mark.parametrize("spec", FIXED, ids=named)
@pytest.mark.slow
def test_as_much_as_an_exhaustive_search_finds(spec):
    net = network(8)
    x = torch.rand(60, 1, 2, 4)
    y = net(x).argmax(1)
    for count in (1, 2):
        exists = corner_exists(net, x, y, count)
        assert 5 < exists.sum() < 60
        found = attacked(spec, net, x, y, float(count)).success
        if spec["kind"] == "sparse-rs":
            assert not (found & ~exists).any()  # it looks at corners alone
        assert found.sum() >= (0.5 if spec["kind"] == "pgd0" else 0.95) * exists.sum(), (found.sum(), exists.sum())


@pytest.mark.parametrize("spec", [*FIXED, {"kind": "sigma-zero", "steps": 50}], ids=named)
def test_towards_a_goal_with_every_pixel_and_on_features(spec):
    torch.manual_seed(0)
    net = nn.Linear(10, 3).eval().requires_grad_(False)
    net.bias.copy_(-net.weight.sum(1) / 2)  # all classes are equal in the middle
    x = torch.rand(20, 10)
    y = net(x).argmax(1)
    goals = (y + 1) % 3
    found = attacked(spec, net, x, y, 10.0, goals=goals)
    assert torch.equal(net(found.adversarial).argmax(1) == goals, found.success)
    assert found.success.sum() >= (5 if spec["kind"] == "pgd0" else 10)
    few = attacked(spec, net, x, y, 2.0, goals=goals)
    if spec["kind"] != "sigma-zero":
        assert (distance(few.adversarial - x, "l0") <= 2).all()


def test_searching_finds_more_than_as_many_random_choices_of_pixels():
    net, x, y, fewest = linear((1, 8, 8))
    each = fewest + 1.0
    batch = Batch(x, y, torch.arange(len(x)))
    blind = torch.zeros(len(x), dtype=torch.bool)
    for query in range(200):
        points = (
            x + random_offsets(each.view(-1, 1, 1, 1), x.shape[1:], "l0", SampleRng(0, batch.index, str(query)), x.dtype).sign()
        )
        blind |= net(points.clamp(0, 1)).argmax(1) != y
    for spec in (
        {"kind": "sparse-rs", "queries": 200},
        {"kind": "spgd", "steps": 100},
        {"kind": "spgd", "steps": 100, "projected": True},
    ):
        assert attacked(spec, net, x, y, 64.0, each=each).success.sum() > blind.sum() + 5, spec


def test_the_projection_is_the_nearest_of_all_choices_of_pixels():
    torch.manual_seed(0)
    centre, x = torch.rand(5, 2, 2, 3), torch.rand(5, 2, 2, 3) * 3 - 1
    found = Ball.around(centre, 2.0, "l0", (0.0, 1.0)).project(x)
    assert (distance(found - centre, "l0") <= 2).all()
    best = torch.full((5,), torch.inf)
    for where in itertools.combinations(range(6), 2):
        chosen = torch.zeros(6, dtype=torch.bool)
        chosen[list(where)] = True
        point = torch.where(chosen.view(1, 1, 2, 3), x.clamp(0, 1), centre)
        best = best.minimum(distance(point - x, "l2"))
    assert torch.allclose(distance(found - x, "l2"), best)


def test_random_offsets_change_as_many_pixels_as_are_allowed():
    offsets = random_offsets(3.9, (3, 5, 5), "l0", SampleRng(0, torch.arange(50)), torch.float32)
    assert (distance(offsets, "l0") == 3).all()
    assert (offsets != 0).any(1).sum(0).min() > 0  # every pixel has its turn
    assert offsets.abs().max() <= 1


def test_a_budget_of_more_pixels_than_an_image_has_is_refused():
    net = network(48)
    with pytest.raises(RobustkdError, match="17 is more pixels than an image has, 16"):
        robustkd.attack("spgd", net, torch.rand(4, 3, 4, 4), torch.zeros(4, dtype=torch.long), norm="l0", eps=17)


def test_spgd_looks_at_the_third_step_in_the_same_pixels_before_it_draws_others():
    torch.manual_seed(0)
    x = torch.rand(2, 1, 5, 5)
    ball, rows = Ball.around(x, 3.0, "l0", (0.0, 1.0)), torch.arange(2)
    update = SPGDStep(SampleRng(0, rows), projected=True, alpha=0.25, beta=0.25, patience=3)
    zero, none = torch.zeros(2), torch.zeros(2, dtype=torch.bool)
    start = update.start(ball, rows)
    state = AttackState(rows, ball, start, torch.zeros_like(x), zero, start, zero, none, none)
    looks = [state.x]
    for t in range(7):  # no gradient: nothing but a new draw changes the pixels
        state.x = update.step(state, t)
        looks.append(state.x)
    changed = [not torch.equal(before, after) for before, after in itertools.pairwise(looks)]
    assert changed == [False, False, False, True, False, False, True]  # what was drawn is looked at three times
