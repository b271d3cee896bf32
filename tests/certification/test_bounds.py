"""Bounds: never crossed by an attack, exact where the answer can be written down, tighter where theory says so."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import robustkd
from robustkd.certification.ball import Ball
from robustkd.certification.layers import operation_of
from robustkd.certification.margins import margins
from robustkd.certification.network import BoundedNetwork
from robustkd.certification.operation import Interval
from robustkd.contracts import TargetError
from support.random_networks import ACTIVATIONS, RandomNetwork

METHODS = ("interval", "crown-ibp", "crown")


def ball_of(x, eps, norm="linf"):
    return (Ball.linf if norm == "linf" else Ball.l2)(x, x.new_full((len(x),), eps), 0.0, 1.0)


@torch.no_grad()
def least_margins(net, x, y, eps, method, norm="linf"):
    """(B, K - 1) bounds of the margins against each wrong class."""
    found = margins(BoundedNetwork(net), ball_of(x, eps, norm), y, method)
    return found[torch.arange(found.shape[1]) != y.unsqueeze(1)].view(len(x), -1)


def margin_at(net, x, y):
    logits = net(x).detach()
    others = logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
    return logits.gather(1, y.unsqueeze(1)).squeeze(1) - others


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 20))])
@pytest.mark.slow
def test_no_attack_crosses_the_bounds_of_a_random_network(seed, norm):
    net = RandomNetwork(seed).double()
    x = torch.rand(6, 1, 6, 6, dtype=torch.float64)
    y = net(x).argmax(1)
    eps = (0.02 if norm == "linf" else 0.1) * (1 + seed % 3)
    bounds = {method: least_margins(net, x, y, eps, method, norm).amin(1) for method in METHODS}
    assert (bounds["crown-ibp"] >= bounds["interval"]).all()
    assert torch.isfinite(bounds["interval"]).all()
    assert (least_margins(net, x, y, 0.0, "crown", norm).amin(1) - margin_at(net, x, y)).abs().max() < 1e-5
    reached = margin_at(net, x, y)
    for name, params in (
        ("pgd", {"steps": 30, "loss": "margin"}),
        ("pgd", {"steps": 10, "restarts": 3}),
        ("apgd-t", {"steps": 20, "targets": 2}),
        ("square", {"queries": 100}),
    ):
        found = torch.as_tensor(robustkd.attack(name, net, x, y, norm=norm, eps=eps, params=params).adversarial).double()
        reached = reached.minimum(margin_at(net, found, y))
    for method in METHODS:
        assert (bounds[method] <= reached + 1e-6).all(), method


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), eps=st.floats(0, 0.5), norm=st.sampled_from(["linf", "l2"]))
def test_no_point_of_the_ball_crosses_the_bounds(seed, eps, norm):
    net = RandomNetwork(seed).double()
    x = torch.rand(2, 1, 6, 6, dtype=torch.float64)
    y = net(x).argmax(1)
    moved = torch.randn(64, *x.shape, dtype=torch.float64)
    moved = moved.sign() * eps if norm == "linf" else moved * eps / moved.flatten(2).norm(dim=2).view(64, 2, 1, 1, 1)
    points = (x + moved).clamp(0, 1).flatten(0, 1)
    reached = margin_at(net, points, y.repeat(64)).view(64, 2).amin(0)
    for method in METHODS:
        assert (least_margins(net, x, y, eps, method, norm).amin(1) <= reached + 1e-9).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_network_has_its_exact_optimum(method):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 4)).double()
    x, eps = torch.rand(5, 1, 3, 3, dtype=torch.float64), 0.2
    y = net(x).argmax(1)
    weight = net[1].weight.detach()
    low, high = (x - eps).clamp(0, 1).flatten(1), (x + eps).clamp(0, 1).flatten(1)
    for number, label in enumerate(y.tolist()):
        found = least_margins(net, x, y, eps, method)[number]
        others = [j for j in range(4) if j != label]
        rows = weight[label] - weight[others]
        worst = torch.where(rows > 0, low[number], high[number])  # a corner of the box
        bias = net[1].bias.detach()
        assert torch.allclose(found, (rows * worst).sum(1) + bias[label] - bias[others])
    inside, small = 0.4 + 0.2 * x, 0.1  # whose ball in l2 lies within the range
    y = net(inside).argmax(1)
    if method != "interval":  # which sees a box
        found = least_margins(net, inside, y, small, method, "l2")
        clean = net(inside).detach()
        for number, label in enumerate(y.tolist()):
            others = [j for j in range(4) if j != label]
            drop = small * (weight[label] - weight[others]).norm(dim=1)
            assert torch.allclose(found[number], clean[number, label] - clean[number, others] - drop)


def test_intervals_of_a_monotone_network_are_its_values_at_the_corners():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3)
    )
    net = net.double().eval()
    for layer in net:
        if hasattr(layer, "weight"):
            layer.weight.data.abs_()
    x = torch.rand(4, 1, 6, 6, dtype=torch.float64)
    network, ball = BoundedNetwork(net), ball_of(x, 0.1)
    with torch.no_grad():
        found = network.intervals(ball).of[network.output]
        assert torch.allclose(found.low, net(ball.box.low))
        assert torch.allclose(found.high, net(ball.box.high))


def test_linear_bounds_are_exact_where_no_relu_can_switch():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    for layer in (net[1], net[3]):
        layer.bias.data += torch.where(torch.arange(6) % 2 == 0, 20.0, -20.0)
    x = torch.rand(3, 1, 2, 2, dtype=torch.float64)
    y = net(x).argmax(1)
    pixels = torch.cartesian_prod(*[torch.tensor([-0.05, 0.05], dtype=torch.float64)] * 4).view(16, 1, 2, 2)
    for number in range(3):
        corners = (x[number] + pixels).clamp(0, 1)
        logits = net(corners).detach()
        optimum = (logits[:, y[number]].unsqueeze(1) - logits).amin(0)
        found = margins(BoundedNetwork(net), ball_of(x[number : number + 1], 0.05), y[number : number + 1], "crown-ibp")[0]
        assert torch.allclose(found.detach(), optimum)
    crude = least_margins(net, x, y, 0.05, "interval")
    assert (crude < least_margins(net, x, y, 0.05, "crown-ibp") - 1e-3).any()


def test_lines_that_stand_on_linear_bounds_gain_on_those_that_stand_on_intervals():
    gains = []
    for seed in range(6):
        net = RandomNetwork(seed).double()
        x = torch.rand(4, 1, 6, 6, dtype=torch.float64)
        y = net(x).argmax(1)
        gains.append(least_margins(net, x, y, 0.05, "crown").amin(1) - least_margins(net, x, y, 0.05, "crown-ibp").amin(1))
    assert torch.cat(gains).mean() > 0.01


@settings(max_examples=60, deadline=None)
@given(number=st.integers(0, len(ACTIVATIONS) - 1), low=st.floats(-12, 12), width=st.floats(0, 15))
def test_an_activation_lies_between_its_lines_and_inside_its_interval(number, low, width):
    layer = nn.Sequential(ACTIVATIONS[number]())
    graph = torch.fx.symbolic_trace(layer)
    inputs, node, _ = graph.graph.nodes
    operation = operation_of(node, graph, [inputs])
    ends = Interval(torch.full((1, 1), low, dtype=torch.float64), torch.full((1, 1), low + width, dtype=torch.float64))
    points = torch.linspace(low, low + width, 1001, dtype=torch.float64)
    lines, found = operation.lines(ends), operation.interval(layer, [ends])
    values = layer(points)
    assert (values >= lines.lower_slope * points + lines.lower_offset - 1e-9).all()
    assert (values <= lines.upper_slope * points + lines.upper_offset + 1e-9).all()
    assert values.min() >= found.low - 1e-9
    assert values.max() <= found.high + 1e-9
    assert float(values.max() - values.min()) >= float(found.high - found.low) - 1e-2


class Unfollowable(nn.Module):
    def forward(self, x):
        """It asks the values themselves."""
        return x.flatten(1)[:, :3] if x.sum() > 0 else x.flatten(1)[:, 1:4]


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (nn.Sequential(nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 3)), "'1' is a LayerNorm"),
        (nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), nn.Flatten(), nn.Linear(1, 3)), "MaxPool2d with these settings"),
        (Unfollowable(), "torch.fx cannot follow it"),
    ],
)
def test_a_network_without_known_bounds_is_refused_by_the_layer(net, said):
    with pytest.raises(TargetError, match=said):
        BoundedNetwork(net)


class Product(nn.Module):
    def forward(self, x):
        """Two values that both depend on the input, multiplied."""
        x = x.flatten(1)
        return x * x


def test_a_product_of_two_values_is_refused():
    with pytest.raises(TargetError, match="mul"):
        BoundedNetwork(Product())
