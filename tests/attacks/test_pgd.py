"""FGSM, PGD and the loop beneath them, against analytic optima and against other libraries on the same inputs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import robustkd
from robustkd.attacks.image.engine.ascent import SteepestStep, maximize
from robustkd.attacks.image.engine.ball import Ball, StepSize
from robustkd.attacks.image.engine.objective import for_batch
from robustkd.attacks.image.engine.oracle import Oracle, frozen
from robustkd.contracts import Batch, TargetError, UsageError
from robustkd.contracts.random import SampleRng
from robustkd.scoring.distances import distance
from robustkd.targets import ClassifierTarget
from support.small_networks import convolutional, noise_with_labels

NORMS = {"linf": 0.05, "l2": 0.3, "l1": 1.0}


@pytest.fixture(scope="module")
def net():
    return convolutional()


@pytest.fixture(scope="module")
def data(net):
    return noise_with_labels(net, 40, wrong=5)


def last_iterate(net, x, y, *, norm, eps, size, steps):
    """Where native PGD is after its last step, whether or not it was broken on the way."""
    batch = Batch(x, y, torch.arange(len(x)))
    target = ClassifierTarget(net, num_classes=10, input_shape=x.shape[1:])
    seen = {}
    with frozen(net):
        maximize(
            Oracle(target, batch),
            batch.index,
            ball := Ball.around(x, eps, norm, (0.0, 1.0)),
            ball.centre,
            objective=for_batch("ce", batch),
            update=SteepestStep(StepSize(size)),
            steps=steps,
            stop_when_broken=False,
            recorder=lambda t, rows, at, values: seen.update({t: at.clone()}),
        )
    return seen[steps]


@pytest.mark.parametrize(("ours", "theirs"), [("linf", "PGD"), ("l2", "PGDL2")])
def test_pgd_equals_torchattacks_sample_by_sample(net, data, ours, theirs):
    torchattacks = pytest.importorskip("torchattacks")
    x, y = data
    eps, size = NORMS[ours], NORMS[ours] / 4
    peer = getattr(torchattacks, theirs)(net, eps=eps, alpha=size, steps=10, random_start=False)
    mine = last_iterate(net, x, y, norm=ours, eps=eps, size=size, steps=10)
    apart = (mine - peer(x, y)).abs().flatten(1).amax(1)
    assert int((apart > 1e-5).sum()) == 0, f"{int((apart > 1e-5).sum())} of {len(x)} samples differ"


@pytest.mark.parametrize(("ours", "theirs"), [("linf", "LinfPGD"), ("l2", "L2PGD")])
def test_pgd_equals_foolbox_sample_by_sample(net, data, ours, theirs):
    foolbox = pytest.importorskip("foolbox")
    x, y = data
    eps, size = NORMS[ours], NORMS[ours] / 4
    peer = getattr(foolbox.attacks, theirs)(abs_stepsize=size, steps=10, random_start=False)
    found, _, _ = peer(foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu"), x, y, epsilons=eps)
    mine = last_iterate(net, x, y, norm=ours, eps=eps, size=size, steps=10)
    apart = (mine - found).abs().flatten(1).amax(1)
    assert int((apart > 1e-5).sum()) == 0, f"{int((apart > 1e-5).sum())} of {len(x)} samples differ"


def test_fgsm_equals_torchattacks(net, data):
    torchattacks = pytest.importorskip("torchattacks")
    x, y = data
    right = net(x).argmax(1) == y
    found = robustkd.attack("fgsm", net, x, y, eps=0.05)
    peer = torchattacks.FGSM(net, eps=0.05)(x, y)
    moved = right & torch.as_tensor(found.success)
    assert torch.allclose(found.adversarial[moved], peer[moved], atol=1e-6)
    assert torch.equal(torch.as_tensor(found.success), right & (net(peer).argmax(1) != y))


@pytest.mark.parametrize("norm", NORMS)
def test_on_a_linear_model_pgd_reaches_the_optimum(norm):
    """Two classes, z = (0, w.x + b): the best decrease of w.x in a ball is eps times the dual norm of w."""
    torch.manual_seed(0)
    linear = nn.Linear(20, 2).double()
    x = torch.rand(30, 20, dtype=torch.float64) * 0.2 + 0.4
    w = (linear.weight[1] - linear.weight[0]).detach()
    y = linear(x).argmax(1)
    dual = {"linf": w.abs().sum(), "l2": w.norm(), "l1": w.abs().max()}[norm]
    gap = (linear(x)[:, 1] - linear(x)[:, 0]).detach().abs()
    for scale in (0.97, 1.03):  # just too small, and just large enough, for each sample on its own
        eps = float(gap.median() / dual) * scale
        found = robustkd.attack("pgd", linear, x, y, norm=norm, eps=eps, steps=100, loss="margin", step_size=eps / 10)
        assert torch.equal(torch.as_tensor(found.success), gap < eps * dual)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(NORMS)), st.floats(0, 2), st.integers(0, 100))
def test_projection_and_start_stay_inside(norm, eps, seed):
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(6, 1, 3, 3, generator=generator)
    ball = Ball.around(centre, eps, norm, (0.0, 1.0))
    far = centre + 3 * torch.randn(centre.shape, generator=generator)
    rng = SampleRng(seed, torch.arange(6))
    for point in (ball.project(far), ball.random_point(rng), ball.random_start(rng)):
        assert (distance(point - centre, norm) <= eps * (1 + 1e-5) + 1e-6).all()
        assert point.min() >= 0
        assert point.max() <= 1
    inside = ball.project(far)
    assert torch.allclose(ball.project(inside), inside, atol=1e-6)


def test_a_start_in_l2_is_as_often_near_as_far():
    centre = torch.full((2000, 1, 8, 8), 0.5)
    start = Ball.around(centre, 0.4, "l2", (0.0, 1.0)).random_start(SampleRng(0, torch.arange(2000)))
    reached = distance(start - centre, "l2") / 0.4
    for share in (0.25, 0.5, 0.75):
        assert float((reached < share).double().mean()) == pytest.approx(share, abs=0.04)


@pytest.mark.parametrize("norm", NORMS)
def test_a_result_does_not_depend_on_its_batch(net, data, norm):
    x, y = data
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    whole = robustkd.attack("pgd", net, x, y, norm=norm, eps=NORMS[norm], restarts=2)
    parts = robustkd.attack("pgd", net, x, y, norm=norm, eps=NORMS[norm], restarts=2, batch_size=7)
    assert (whole.success == parts.success).all()
    assert torch.allclose(whole.adversarial, parts.adversarial, atol=1e-5)
    assert (whole.outcome.forwards == parts.outcome.forwards).all()
    assert len(order) == len(x)


def test_passes_are_counted_exactly(net, data):
    x, y = data
    rows = {"forward": 0, "backward": 0}

    class Counting(nn.Module):
        def forward(self, images):
            rows["forward"] += len(images)
            out = net(images)
            if out.requires_grad:
                out.register_hook(lambda gradient: rows.update(backward=rows["backward"] + len(gradient)))
            return out

    from robustkd.contracts import ThreatModel
    from robustkd.contracts.random import SampleRng
    from robustkd.plugins import load

    target = ClassifierTarget(Counting(), num_classes=10, input_shape=(1, 8, 8))
    plugin = load("attacks", "pgd")
    batch = Batch(x, y, torch.arange(len(x)))
    result = plugin(plugin.Params(steps=5, restarts=2)).run(target, batch, ThreatModel("linf", 0.02), SampleRng(0, batch.index))
    assert int(result.forwards.sum()) == rows["forward"]
    assert int(result.backwards.sum()) == rows["backward"]
    assert (result.forwards[:5] == 1).all()  # misclassified as they come: looked at once, not attacked


def test_the_model_is_left_as_found(data):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 10))
    net.train()
    net[1].eval()
    net[4].bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    rng = torch.get_rng_state()
    robustkd.attack("pgd", net, *data, eps=0.1, steps=3)
    assert [module.training for module in net] == [True, False, True, True, True]
    assert [p.requires_grad for p in net.parameters()] == [True] * 5 + [False]
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())


@pytest.mark.parametrize("eps", [0.0, 1.0])
def test_no_budget_breaks_nothing_and_a_full_one_nearly_everything(net, data, eps):
    found = robustkd.attack("pgd", net, *data, eps=eps, steps=20)
    share = found.success.sum() / found.outcome.correct.sum()
    assert share == 0 if eps == 0 else share > 0.9


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_few_classes(classes, loss):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, classes))
    x = torch.rand(1, 1, 3, 3)
    if loss == "dlr" and classes == 2:
        with pytest.raises(Exception, match="at least 3 classes"):
            robustkd.attack("pgd", net, x, net(x).argmax(1), eps=1.0, loss=loss)
    else:
        assert robustkd.attack("pgd", net, x, net(x).argmax(1), eps=1.0, loss=loss).success.all()


def test_a_targeted_attack_reaches_its_class(net, data):
    x, y = data
    goals = (y + 3) % 10
    found = robustkd.attack("pgd", net, x, y, eps=0.5, steps=40, goals=goals)
    reached = torch.as_tensor(found.success)
    assert reached.float().mean() > 0.8
    assert torch.equal(net(found.adversarial).argmax(1)[reached], goals[reached])


def test_nan_is_an_error_and_not_a_success(data):
    class Broken(nn.Module):
        def forward(self, x):
            out = x.flatten(1)[:, :10]
            return out * float("nan") if torch.is_grad_enabled() else out

    with pytest.raises(TargetError, match="NaN"):
        robustkd.attack("pgd", Broken(), *data, eps=0.1)


def test_a_wrong_parameter_is_named_with_a_suggestion(net, data):
    with pytest.raises(UsageError, match="did you mean 'steps'"):
        robustkd.attack("pgd", net, *data, stepz=3)
