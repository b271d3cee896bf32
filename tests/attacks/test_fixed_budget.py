"""Every fixed-budget attack beside FGSM and PGD: against analytic optima, other libraries and properties that must hold."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import robustkd
from robustkd.attacks.image.black_box.square import LinfSquare, bump, share_of_window, two_bumps
from robustkd.attacks.image.engine.ascent import AttackState
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.oracle import frozen
from robustkd.attacks.image.engine.target_classes import wrong_classes
from robustkd.attacks.image.gradient.apgd import checkpoints
from robustkd.attacks.image.transferable.ti_fgsm import smoothed
from robustkd.contracts import AttackError, Batch, TargetError, ThreatModel, UsageError
from robustkd.contracts.random import SampleRng
from robustkd.plugins import load
from robustkd.scoring.distances import distance
from robustkd.targets import ClassifierTarget
from robustkd.transforms.resize_pad import shrunk
from support.counted_network import CountedNetwork
from support.small_networks import convolutional, noise_with_labels

EPS = {"linf": 0.05, "l2": 0.4, "l1": 2.0}
CHEAP = {
    "bim": {"steps": 5},
    "mi-fgsm": {"steps": 5},
    "ni-fgsm": {"steps": 5},
    "di2-fgsm": {"steps": 5, "decay": 0.5},
    "ti-fgsm": {"steps": 5, "kernel": 3, "probability": 0.5},
    "si-fgsm": {"steps": 4, "copies": 3, "look_ahead": True},
    "vmi-fgsm": {"steps": 4, "neighbours": 3},
    "apgd-ce": {"steps": 10, "restarts": 2},
    "apgd-dlr": {"steps": 10},
    "apgd-t": {"steps": 5, "targets": 3},
    "square": {"queries": 40, "restarts": 2},
    "nes": {"steps": 4, "pairs": 5},
    "spsa": {"steps": 4, "pairs": 5, "lr": 0.05},
    "eot": {"attack": {"kind": "apgd-ce", "steps": 5}, "samples": 2},
}
UNTARGETED_ONLY = ("apgd-t",)


def run(name, target, batch, threat, seed=0, **params):
    plugin = load("attacks", name)
    return plugin(plugin.Params(**(params or CHEAP[name]))).run(target, batch, threat, SampleRng(seed, batch.index))


def target_of(net, classes=10, shape=(1, 8, 8)):
    return ClassifierTarget(net, num_classes=classes, input_shape=shape)


@pytest.fixture(scope="module")
def net():
    return convolutional()


@pytest.fixture(scope="module")
def batch(net):
    return Batch(*noise_with_labels(net, 24, wrong=3), torch.arange(100, 124))


# --- what must hold for every attack ---------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", CHEAP)
def test_a_result_depends_on_the_sample_alone(name, norm, net, batch):
    """Whole batch, permuted, and one by one: the same points, successes and passes."""
    target, threat = target_of(net), ThreatModel(norm, EPS[norm])
    whole = run(name, target, batch, threat)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(3))
    permuted = run(name, target, batch.select(order), threat)
    alone = [run(name, target, batch.select(torch.tensor([row])), threat) for row in range(0, len(batch), 5)]
    for row, single in zip(range(0, len(batch), 5), alone, strict=True):
        there = int((order == row).nonzero())
        for other, place in ((permuted, there), (single, 0)):
            assert whole.success[row] == other.success[place]
            assert torch.allclose(whole.adversarial[row], other.adversarial[place], atol=1e-4)
            assert whole.forwards[row] == other.forwards[place]
            assert whole.backwards[row] == other.backwards[place]
    assert torch.equal(whole.success[order], permuted.success)


@pytest.mark.parametrize("name", CHEAP)
def test_budget_range_success_and_passes(name, net, batch):
    """Points inside budget and range, claims that the model confirms, counts that the model counted, a model left alone."""
    counting = CountedNetwork(net)
    target = target_of(counting)
    before = {key: value.clone() for key, value in counting.state_dict().items()}
    state = torch.get_rng_state()
    for norm, eps in EPS.items():
        counting.forwards = counting.backwards = 0
        found = run(name, target, batch, ThreatModel(norm, eps))
        assert int(found.forwards.sum()) == counting.forwards
        assert int(found.backwards.sum()) == counting.backwards
        assert (found.backwards == 0).all() or load("attacks", name).gradients
        assert distance(found.adversarial - batch.inputs, norm).max() <= eps * (1 + 1e-5)
        assert found.adversarial.min() >= 0
        assert found.adversarial.max() <= 1
        wrong = net(found.adversarial).argmax(1) != batch.labels
        assert torch.equal(wrong, found.success)
        looks = CHEAP["eot"]["samples"] if name == "eot" else 1
        assert (found.forwards[:3] == looks).all()
        assert torch.equal(found.adversarial[:3], batch.inputs[:3])
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[key], value) for key, value in counting.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in counting.parameters())


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(CHEAP)),
    st.sampled_from(sorted(EPS)),
    st.floats(0, 3),
    st.integers(0, 50),
    st.sampled_from([2, 3, 5]),
)
def test_any_budget_any_number_of_classes(name, norm, eps, seed, classes):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(2 * 4 * 7, classes))
    x = torch.rand(2, 2, 4, 7, generator=generator).round(decimals=1)  # black and white pixels among them; not square
    batch = Batch(x, net(x).argmax(1), torch.arange(2))
    found = run(name, target_of(net, classes, (2, 4, 7)), batch, ThreatModel(norm, eps), seed)
    assert torch.isfinite(found.adversarial).all()
    assert (distance(found.adversarial - x, norm) <= eps * (1 + 1e-5) + 1e-6).all()
    assert found.adversarial.min() >= 0
    assert found.adversarial.max() <= 1
    if eps == 0:
        assert not found.success.any()


@pytest.mark.parametrize("name", CHEAP)
def test_no_budget_breaks_nothing_and_a_full_one_nearly_everything(name, net, batch):
    # The transfer attacks take few steps here; a full budget is then one jump after another from corner to corner.
    for eps, least, most in ((0.0, 0.0, 0.0), (1.0, 0.5, 1.0)):
        found = run(name, target_of(net), batch, ThreatModel("linf", eps))
        assert least <= found.success[3:].float().mean() <= most


@pytest.mark.parametrize("name", [name for name in CHEAP if name not in UNTARGETED_ONLY])
def test_targeted(name, net, batch):
    goals = (batch.labels + 4) % 10
    goals[:3] = net(batch.inputs[:3]).argmax(1)  # at their goal as they come
    asked = Batch(batch.inputs, batch.labels, batch.index, goals=goals)
    found = run(name, target_of(net), asked, ThreatModel("linf", 0.3, goal="targeted"))
    assert torch.equal(net(found.adversarial).argmax(1) == goals, found.success)
    assert found.success[3:].float().mean() > 0.3
    assert found.success[:3].all()


def test_an_attack_that_chooses_its_own_targets_refuses_goals():
    assert "targeted" in load("attacks", "apgd-t")().refusal(ThreatModel("linf", 0.1, goal="targeted"))


@pytest.mark.parametrize("name", CHEAP)
def test_a_nan_is_an_error(name, batch):
    class Broken(nn.Module):
        def forward(self, x):
            calm = x.flatten(1)[:, :10]
            return calm if torch.equal(x, batch.inputs) else calm * float("nan")

    clean = Batch(batch.inputs, batch.inputs.flatten(1)[:, :10].argmax(1), batch.index)
    with pytest.raises(TargetError, match="NaN"):
        run(name, target_of(Broken()), clean, ThreatModel("linf", 0.1))


@pytest.mark.parametrize("name", CHEAP)
def test_a_constant_model_is_not_broken(name, batch):
    class Constant(nn.Module):
        def forward(self, x):
            return 0 * x.flatten(1)[:, :10] + torch.eye(10)[0]

    same = Batch(batch.inputs, torch.zeros_like(batch.labels), batch.index)
    found = run(name, target_of(Constant()), same, ThreatModel("linf", 0.1))
    assert not found.success.any()
    assert torch.isfinite(found.adversarial).all()


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "square", "vmi-fgsm", "spsa"])
def test_double_precision(name, net, batch):
    double = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10)).double().eval()
    double.load_state_dict(net.state_dict())
    wide = Batch(batch.inputs.double(), batch.labels, batch.index)
    assert run(name, target_of(double), wide, ThreatModel("linf", 0.1)).adversarial.dtype == torch.float64


# --- APGD ------------------------------------------------------------------------------------------------------------


def test_checkpoints_are_those_of_the_paper():
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(checkpoints(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert all(0 < mark < steps for steps in range(1, 50) for mark in checkpoints(steps))


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("name", ["apgd-ce", "apgd-dlr", "apgd-t"])
def test_on_a_linear_model_apgd_reaches_the_optimal_margin(name, norm):
    """Two classes: inside the pixel range, the best decrease of w.x in a ball is eps times the dual norm of w."""
    torch.manual_seed(0)
    linear = nn.Linear(20, 2).double()
    x = torch.rand(20, 20, dtype=torch.float64) * 0.2 + 0.4
    w = (linear.weight[1] - linear.weight[0]).detach()
    y = linear(x).argmax(1)
    gap = (linear(x)[:, 1] - linear(x)[:, 0]).detach().abs()
    dual = {"linf": w.abs().sum(), "l2": w.norm(), "l1": w.abs().max()}[norm]
    for scale in (0.99, 1.01):
        eps = float(gap.median() / dual) * scale
        found = robustkd.attack(name, linear, x, y, norm=norm, eps=eps, steps=50)
        assert torch.equal(torch.as_tensor(found.success), gap < eps * dual)


def test_on_a_linear_model_apgd_uses_the_room_that_the_pixel_range_leaves():
    """l1 with pixels at their bounds: the optimum is a fractional knapsack, filled by the largest weights first."""
    torch.manual_seed(0)
    w = torch.randn(30).double()
    x = torch.rand(12, 30).double().round(decimals=1)
    room, eps = torch.where(w > 0, 1 - x, x), 4.0
    order = w.abs().argsort(descending=True)
    taken = room[:, order].cumsum(1).clamp_max(eps).diff(dim=1, prepend=torch.zeros(12, 1).double())
    best = (x @ w) + (taken * w.abs()[order]).sum(1)

    class Linear(nn.Module):
        def forward(self, pixels):
            score = pixels @ w
            return torch.stack([torch.full_like(score, 100.0), score], 1)

    found = run(
        "apgd-dlr",
        target_of(Linear(), 2, (30,)),
        Batch(x, torch.zeros(12).long(), torch.arange(12)),
        ThreatModel("l1", eps),
        steps=100,
    )
    gained = (found.adversarial @ w - x @ w) / (best - x @ w)
    assert gained.mean() > 0.99
    assert gained.min() > 0.97  # over seeds: 0.9953 on average, an eighth of the samples below 0.99
    assert (gained < 1 + 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 60),
    st.floats(-3, 1),
    st.floats(-2, 2),
    st.sampled_from([torch.float32, torch.float64]),
    st.booleans(),
)
def test_l1_projection_is_the_closest_point_of_ball_and_pixel_range(seed, values, far, size, dtype, ties):
    """Against a bisection for the one threshold. Half of the pixels are at a bound, and some have not moved; many move equally far."""
    draw = torch.Generator().manual_seed(seed)
    centre = (2 * torch.rand(4, values, generator=draw, dtype=dtype) - 0.5).clamp(0, 1)
    delta = 10**far * torch.randn(4, values, generator=draw, dtype=dtype) * (torch.rand(4, values, generator=draw) < 0.8)
    if ties:
        centre, delta = centre.round(decimals=1), delta.round(decimals=1)
    eps = 10**size * torch.rand(4, generator=draw, dtype=dtype)
    found = Ball.around(centre, eps, "l1", (0.0, 1.0)).project(centre + delta)

    room = torch.where(delta >= 0, 1 - centre, centre).double()
    delta, wanted_norm = (centre + delta - centre).double(), eps.double().unsqueeze(1)

    def cut(threshold):
        return (delta.abs() - threshold).clamp_min(0).minimum(room)

    low, high = torch.zeros(4, 1).double(), delta.abs().amax(1, keepdim=True)
    for _ in range(80):
        over = cut((low + high) / 2).sum(1, keepdim=True) > wanted_norm
        low, high = torch.where(over, (low + high) / 2, low), torch.where(over, high, (low + high) / 2)
    threshold = torch.where(cut(0).sum(1, keepdim=True) <= wanted_norm, 0, high)
    rounding = 4 * 10 ** max(far, 0) * torch.finfo(dtype).eps * values**0.5
    assert torch.allclose(found.double(), centre + delta.sign() * cut(threshold), rtol=0, atol=rounding)
    stopped = delta.abs() - threshold > room + rounding
    assert ((found == 0) | (found == 1))[stopped].all()


@pytest.mark.parametrize("patch", [None, 6])
def test_a_query_of_square_gives_one_window_another_colour(patch):
    draw = torch.Generator().manual_seed(0)
    centre = (2 * torch.rand(8, 3, 12, 12, generator=draw) - 0.5).clamp(0, 1)
    movable = None
    if patch is not None:
        movable = torch.zeros(8, 1, 12, 12, dtype=torch.bool)
        movable[:, :, 2 : 2 + patch, 5 : 5 + patch] = True
    ball = Ball.around(centre, 0.1, "linf", (0.0, 1.0), movable)
    rows, none = torch.arange(8), torch.zeros(8, dtype=torch.bool)
    update = LinfSquare(SampleRng(0, rows), queries=1000, first=0.3)
    x = update.start(ball, rows)
    room = 12 if patch is None else patch
    for t in range(0, 1000, 100):
        state = AttackState(rows, ball, x, torch.zeros_like(x), torch.zeros(8), x, torch.zeros(8), none, none)
        proposal = update.step(state, t)
        changed = (proposal != x).any(1)
        side = max(1, round((share_of_window(t, 1000, 0.3) * room**2) ** 0.5))
        assert changed.flatten(1).any(1).all()
        assert (changed.any(2).sum(1) <= side).all()
        assert (changed.any(1).sum(1) <= side).all()
        assert movable is None or not (changed & ~movable.squeeze(1)).any()
        lowest, highest = (centre - 0.1).clamp(0, 1), (centre + 0.1).clamp(0, 1)
        moved = changed.unsqueeze(1).expand_as(x)
        assert ((proposal == lowest) | (proposal == highest))[moved].all()
        x = proposal


def test_wrong_classes_are_ranked_without_the_label():
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0], [0.0, 5.0, 1.0, 4.0]])
    assert wrong_classes(logits, torch.tensor([0, 3])).tolist() == [[2, 3, 1], [1, 2, 0]]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("name", "peer", "params", "theirs"),
    [
        ("apgd-ce", "APGD", {"steps": 10}, {"steps": 10, "loss": "ce"}),
        ("apgd-dlr", "APGD", {"steps": 10}, {"steps": 10, "loss": "dlr"}),
        ("apgd-t", "APGDT", {"steps": 5}, {"steps": 5, "n_classes": 10}),
        ("square", "Square", {"queries": 100}, {"n_queries": 100}),
    ],
)
def test_as_strong_as_torchattacks(name, peer, params, theirs, norm, net, batch):
    torchattacks = pytest.importorskip("torchattacks")
    torch.manual_seed(2)
    x = torch.rand(60, 1, 8, 8)
    y = net(x).argmax(1)
    eps = {"linf": 0.02, "l2": 0.12}[norm]
    mine = robustkd.attack(name, net, x, y, norm=norm, eps=eps, **params)
    attack = getattr(torchattacks, peer)(net, norm=norm.capitalize(), eps=eps, n_restarts=1, seed=0, **theirs)
    broken = (net(attack(x, y)).argmax(1) != y).sum()
    assert 5 < int(broken) < 55  # a budget at which attacks differ
    assert int(mine.success.sum()) >= int(broken) - 2


# --- Square ----------------------------------------------------------------------------------------------------------


def test_the_window_shrinks_as_in_the_paper():
    shares = [share_of_window(t, 10_000, 0.8) for t in (0, 10, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)]
    assert shares == [0.8, 0.8, *(0.8 / 2**k for k in range(1, 10))]
    assert share_of_window(4001, 5000, 0.8) == 0.8 / 2**9


def test_bumps_are_the_pyramids_of_the_paper():
    for power, step in ((2, 1 / 4), (1, 1 / 16)):
        small = bump(3, 3, power)
        assert small[1, 1] == pytest.approx(1 + step)
        assert small[0].tolist() == pytest.approx([step] * 3)
    for power in (1, 2):
        pair = two_bumps(5, power)
        assert pair.flatten(1).norm(p=power, dim=1).tolist() == pytest.approx([1, 1])
        assert torch.equal(pair[0].T, pair[1])


def test_square_on_a_linear_model_comes_near_the_optimum():
    """linf: the optimum is the sign of each pixel's weight; windows of one pixel get there."""
    torch.manual_seed(0)
    w = torch.randn(1, 4, 4)

    class Linear(nn.Module):
        def forward(self, x):
            score = (x * w).flatten(1).sum(1)
            return torch.stack([torch.full_like(score, 100.0), score], 1)

    x = torch.full((5, 1, 4, 4), 0.5)
    batch = Batch(x, torch.zeros(5).long(), torch.arange(5))
    found = run("square", target_of(Linear(), 2, (1, 4, 4)), batch, ThreatModel("linf", 0.1), queries=300)
    reached = ((found.adversarial - x) * w).flatten(1).sum(1) / (0.1 * w.abs().sum())
    assert (reached > 0.95).all()
    assert (found.forwards == 1 + 300).all()


def test_square_wants_images():
    net = nn.Linear(4, 3)
    x = torch.rand(2, 4)
    batch = Batch(x, net(x).argmax(1), torch.arange(2))  # on what is wrong as it comes nothing would be tried
    with pytest.raises(AttackError, match="images"):
        run("square", target_of(net, 3, (4,)), batch, ThreatModel("linf", 0.1))


# --- momentum and its family -----------------------------------------------------------------------------------------


def test_mi_fgsm_equals_torchattacks(net, batch):
    torchattacks = pytest.importorskip("torchattacks")
    peer = torchattacks.MIFGSM(net, eps=0.01, alpha=0.002, steps=8, decay=1.0)(batch.inputs, batch.labels)
    found = run("mi-fgsm", target_of(net), batch, ThreatModel("linf", 0.01), steps=8, step_size=0.002)
    broken = net(peer).argmax(1) != batch.labels
    assert torch.equal(found.success[3:], broken[3:])


def test_ni_fgsm_looks_where_torchattacks_looks(net, batch):
    torchattacks = pytest.importorskip("torchattacks")
    inputs = 0.25 + batch.inputs / 2  # theirs looks beyond the pixel range, ours does not
    inner = replace(batch, inputs=inputs, labels=net(inputs).argmax(1))
    looked = []
    hook = net.register_forward_pre_hook(lambda _, given: looked.append(given[0].detach()) if given[0].requires_grad else None)
    found = run("ni-fgsm", target_of(net), inner, ThreatModel("linf", 1e-4), steps=4, step_size=5e-5)
    ours, theirs = list(looked), looked
    theirs.clear()
    torchattacks.NIFGSM(net, eps=1e-4, alpha=5e-5, steps=4, decay=1.0)(inputs, inner.labels)
    hook.remove()
    assert not found.success.any()  # one that leaves is looked at no more
    torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), rtol=0, atol=1e-6)  # fifty times less than a step


def test_the_family_reduces_to_mi_fgsm_where_it_should(net, batch):
    threat, target = ThreatModel("linf", 0.01), target_of(net)
    plain = run("mi-fgsm", target, batch, threat, steps=6)
    for name, params in {
        "di2-fgsm": {"decay": 1.0, "probability": 0.0},
        "ti-fgsm": {"decay": 1.0, "kernel": 1},
        "si-fgsm": {"copies": 1},
        "vmi-fgsm": {"neighbours": 1, "reach": 1e-9},
    }.items():
        found = run(name, target, batch, threat, steps=6, **params)
        assert torch.allclose(found.adversarial, plain.adversarial, atol=1e-6), name
    without = run("mi-fgsm", target, batch, threat, steps=6, decay=0.0)
    bim = run("bim", target, batch, threat, steps=6, step_size=0.01 / 6)
    assert torch.allclose(without.adversarial, bim.adversarial, atol=1e-6)


def test_a_shrunk_image_keeps_its_content_inside_its_frame():
    image = torch.rand(3, 1, 20, 20)
    assert torch.allclose(shrunk(image, torch.ones(3), torch.zeros(3, 2)), image, atol=1e-5)
    corner = shrunk(image, torch.full((3,), 0.5), torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]]))
    assert corner[0, :, 11:, 11:].abs().max() == 0
    assert corner[1, :, :9, :9].abs().max() == 0
    assert torch.allclose(corner.flatten(1).sum(1), image.flatten(1).sum(1) / 4, rtol=0.1)


def test_smoothing_is_a_gaussian_of_the_authors_width():
    point = torch.zeros(1, 2, 21, 21)
    point[0, 0, 10, 10] = 1
    bell = smoothed(point, 15)
    assert float(bell.sum()) == pytest.approx(1, abs=1e-5)
    assert bell[0, 1].abs().max() == 0
    assert float(bell[0, 0, 10, 13] / bell[0, 0, 10, 10]) == pytest.approx(math.exp(-9 / (2 * 49 / 9)), abs=1e-5)


# --- estimates and expectations --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nes", "spsa"])
def test_score_attacks_find_the_gradient_of_a_linear_model(name):
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double()
    x = torch.full((4, 1, 3, 4), 0.5).double()
    y = linear(x).argmax(1)
    w = (linear[1].weight[1 - y[0]] - linear[1].weight[y[0]]).detach()
    gap = float((linear(x)[0].max() - linear(x)[0].min()).detach())
    eps = gap / float(w.abs().sum())
    found = [robustkd.attack(name, linear, x, y, eps=eps * f, steps=40, pairs=60).success.all() for f in (0.97, 1.1)]
    assert found == [False, True]


def test_eot_sees_through_noise():
    """The logit differences drown in noise that is the same for all classes but one; the mean over passes shows them."""

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.linear = nn.Linear(40, 2)

        def forward(self, x):
            return self.linear(x + 0.5 * torch.randn_like(x)) * (1 + 5 * torch.randn(len(x), 1).abs())

    net = Noisy()
    x = torch.rand(30, 40) * 0.2 + 0.4
    y = net.linear(x).argmax(1)
    counting = CountedNetwork(net)
    batch = Batch(x, y, torch.arange(30))
    target = target_of(counting, 2, (40,))
    spec = {"kind": "apgd-ce", "steps": 10}
    torch.manual_seed(0)
    found = run("eot", target, batch, ThreatModel("linf", 0.05), attack=spec, samples=16)
    assert int(found.forwards.sum()) == counting.forwards
    assert int(found.backwards.sum()) == counting.backwards
    assert (found.forwards % 16 == 0).all()


def test_eot_wraps_by_name_and_takes_over_what_the_attack_is():
    plugin = load("attacks", "eot")
    wrapped = plugin(plugin.Params(attack="cw-l2"))
    assert wrapped.traits.kind == "minimum-norm"
    assert wrapped.traits.norms == ("l2",)
    assert wrapped.traits.loss_family == "margin"
    assert "linf" in plugin(plugin.Params(attack={"kind": "apgd-t"})).traits.norms
    for spec, said in (({"kind": "pgd", "stepz": 3}, "stepz"), ("pgdd", "did you mean 'pgd'"), (3, "the attack's kind")):
        with pytest.raises(UsageError, match=said):
            robustkd.attack("eot", nn.Linear(4, 2), torch.rand(1, 4), torch.zeros(1).long(), attack=spec)


def test_eot_leaves_the_target_usable(net, batch):
    with frozen(net):
        target = target_of(net)
        run("eot", target, batch, ThreatModel("linf", 0.1))
        ball = Ball.around(batch.inputs, 0.1, "linf", target.bounds)
    assert torch.equal(ball.project(batch.inputs), batch.inputs)
