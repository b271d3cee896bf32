"""Attacks by decisions and by scores: they near the known optimum of linear networks, keep to their queries, and beat a control."""

import pytest
import torch
from torch import nn

from robustkd.contracts import Batch, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.plugins import load
from robustkd.scoring.distances import distance
from robustkd.targets import ClassifierTarget
from support.counted_network import CountedNetwork

SHAPE = (1, 4, 4)
QUERIES = 1000
DECISIONS = [
    ("hopskipjump", "l2", {"first_probes": 30}),
    ("hopskipjump", "linf", {"first_probes": 30}),
    ("geoda", "l2", {"frequencies": 1.0, "steps": 4}),
    ("geoda", "linf", {"frequencies": 1.0, "steps": 4}),
    ("surfree", "l2", {"frequencies": 1.0, "orthogonal": 10}),
    ("rays", "linf", {}),
]
CONTROLS = [("random-directions", "l2", {}), ("random-directions", "linf", {})]
SCORES = [("simba", "l2", {}), ("simba", "l2", {"basis": "pixel"}), ("bandits", "linf", {}), ("bandits", "l2", {})]


def cases(them):
    return pytest.mark.parametrize(("name", "norm", "params"), them, ids=lambda value: value if isinstance(value, str) else "")


def linear():
    """Two classes on either side of a plane, samples near the middle of the pixel range, and the plane's normal."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double()
    x = 0.5 + 0.1 * (torch.rand(6, *SHAPE, dtype=torch.float64) - 0.5)
    normal = (net[1].weight[1] - net[1].weight[0]).detach()
    with torch.no_grad():
        net[1].bias.copy_(torch.tensor([0.0, -float(normal.sum()) / 2], dtype=torch.float64) + torch.tensor([0.25, 0.0]))
    return net, Batch(x, net(x).argmax(1), torch.arange(20, 26)), normal


def curved():
    torch.manual_seed(4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    x = torch.rand(6, *SHAPE, dtype=torch.float64)
    y = net(x).argmax(1)
    y[0] = (y[0] + 1) % 4  # misclassified as it comes
    return net, Batch(x, y, torch.arange(20, 26))


def run(name, norm, params, net, batch, queries, eps=0.1):
    plugin = load("attacks", name)
    target = ClassifierTarget(net, num_classes=net(batch.inputs[:1]).shape[1], input_shape=SHAPE)
    attack = plugin(plugin.Params(queries=queries, **params))
    return attack.run(target, batch, ThreatModel(norm, eps), SampleRng(0, batch.index))


@cases(DECISIONS)
def test_on_a_linear_network_they_come_near_the_nearest_point_of_the_plane(name, norm, params):
    net, batch, normal = linear()
    logits = net(batch.inputs).detach()
    nearest = (logits[:, 0] - logits[:, 1]).abs() / normal.norm(p=2 if norm == "l2" else 1)
    found = run(name, norm, params, net, batch, QUERIES)
    ratio = distance(found.adversarial - batch.inputs, norm) / nearest
    assert found.success.all()
    assert (ratio >= 1).all()
    assert ratio.median() < 1.04
    assert ratio.max() < 1.1


@cases(DECISIONS)
@pytest.mark.slow
def test_at_equal_queries_random_directions_end_further_away(name, norm, params):
    net, batch, _ = linear()
    own, control = (run(attack, norm, given, net, batch, 500) for attack, given in ((name, params), ("random-directions", {})))
    lengths = [distance(found.adversarial - batch.inputs, norm) for found in (own, control)]
    assert (lengths[0] / lengths[1]).median() < 0.95


@cases([*DECISIONS, *CONTROLS, *SCORES])
@pytest.mark.parametrize("queries", [4, 37, 150])
def test_every_query_is_counted_and_none_is_above_the_budget(name, norm, params, queries):
    net, batch = curved()
    counting = CountedNetwork(net)
    counting(batch.inputs[:1])  # that of ``run``
    before = counting.forwards
    found = run(name, norm, params, counting, batch, queries)
    assert int(found.forwards.sum()) == counting.forwards - before - 1
    assert found.forwards[0] == 1  # the clean image, which is wrong already
    assert (found.forwards <= queries + (name in ("simba", "bandits"))).all()  # they do not count the clean image's
    assert not found.backwards.any()


@cases([*DECISIONS, *CONTROLS, *SCORES])
def test_a_sample_ends_where_it_ends_alone(name, norm, params):
    net, batch = curved()
    whole = run(name, norm, params, net, batch, 150)
    for row in (0, 1, 5):
        alone = run(name, norm, params, net, batch.select(torch.tensor([row])), 150)
        torch.testing.assert_close(alone.adversarial[0], whole.adversarial[row], rtol=0, atol=1e-9)
        assert alone.forwards[0] == whole.forwards[row]


@cases([("surfree", "l2", {}), ("rays", "linf", {}), ("random-directions", "l2", {})])
def test_it_says_after_which_query_a_sample_was_broken(name, norm, params):
    net, batch = curved()
    eps = 1.2 if norm == "l2" else 0.2
    told = run(name, norm, params, net, batch, 300, eps).queries_to_success
    broken = (told > 0).nonzero().squeeze(1)
    assert 1 <= len(broken) <= 5

    def success(row, queries):
        one = batch.select(torch.tensor([row]))
        return distance(run(name, norm, params, net, one, queries, eps).adversarial - one.inputs, norm)[0] <= eps

    for row in broken.tolist():
        assert success(row, int(told[row]) + 1)  # one is kept back for the last step outwards
        if told[row] > 3:
            alone = batch.select(torch.tensor([row]))
            assert run(name, norm, params, net, alone, int(told[row]), eps).queries_to_success[0] == 0


def test_simba_moves_one_coordinate_at_a_time_and_never_downhill():
    net, batch, normal = linear()
    found = run("simba", "l2", {"basis": "pixel", "step_size": 0.01}, net, batch, 16, eps=10.0)
    delta = (found.adversarial - batch.inputs).flatten(1)
    uphill = torch.where(batch.labels.unsqueeze(1) == 0, normal, -normal)
    assert (delta * uphill >= 0).all()
    assert torch.isin(delta.abs().mul(100).round(decimals=4), torch.tensor([0.0, 1.0], dtype=torch.float64)).all()
    assert (delta != 0).sum(1).min() >= 7  # each coordinate took two queries at most
