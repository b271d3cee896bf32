"""What must hold for every minimum-norm attack: a sample is on its own, counts and claims are true, goals are reached."""

import numpy as np
import pytest
import torch
from torch import nn

import robustkd
from robustkd.attacks.image.engine.minimum_norm.nearest import MinNormState
from robustkd.attacks.image.engine.minimum_norm.penalty import ConstantSearch
from robustkd.contracts import Batch, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.data import SplitParams, load_splits
from robustkd.plugins import load
from robustkd.scoring.distances import distance
from robustkd.targets import ClassifierTarget
from support.counted_network import CountedNetwork
from support.published_networks import adversarially_trained_lenet

CASES = [
    ("cw-l2", "l2", {"steps": 30, "binary_steps": 3}),
    ("cw-linf", "linf", {"steps": 150, "patience": 15}),
    ("ddn", "l2", {"steps": 30}),
    ("deepfool", "linf", {}),
    ("deepfool", "l2", {}),
    ("ead", "l1", {"steps": 100, "binary_steps": 3}),
    *[("fmn", norm, {"steps": 30}) for norm in ("linf", "l2", "l1", "l0")],
    *[("fab", norm, {"steps": 30, "restarts": 2}) for norm in ("linf", "l2", "l1")],
    *[("fab-t", norm, {"steps": 30, "targets": 2}) for norm in ("linf", "l2", "l1")],
]
every = pytest.mark.parametrize(("name", "norm", "params"), CASES, ids=lambda value: value if isinstance(value, str) else "")


def network(classes):
    torch.manual_seed(classes)
    return nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 5 * 6, classes)).eval()


def samples(net, count=9):
    torch.manual_seed(1)
    x = (
        torch.rand(count, 2, 5, 6, dtype=net[-1].weight.dtype).mul(1.4).sub(0.2).clamp(0, 1)
    )  # not square, some pixels black or white
    y = net(x).argmax(1)
    y[0] = (y[0] + 1) % net[-1].out_features  # misclassified as it comes
    return Batch(x, y, torch.arange(100, 100 + count))


def run(name, norm, params, net, batch):
    plugin = load("attacks", name)
    target = ClassifierTarget(net, num_classes=net[-1].out_features, input_shape=(2, 5, 6))
    return plugin(plugin.Params(**params)).run(target, batch, ThreatModel(norm, 1.0), SampleRng(0, batch.index))


@every
def test_a_result_depends_on_the_sample_alone(name, norm, params):
    net = network(5).double()  # so that another order of additions in the network cannot send a search elsewhere
    batch = samples(net)
    whole = run(name, norm, params, net, batch)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(3))
    permuted = run(name, norm, params, net, batch.select(order))
    for row in range(0, len(batch), 4):
        single = run(name, norm, params, net, batch.select(torch.tensor([row])))
        there = int((order == row).nonzero())
        for other, place in ((permuted, there), (single, 0)):
            assert whole.success[row] == other.success[place]
            length, same = whole.extras["norm"][row], other.extras["norm"][place]
            assert torch.allclose(length, same, rtol=1e-6, atol=1e-9)


@every
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_claims_counts_and_range(name, norm, params, classes):
    net = network(classes)
    batch = samples(net)
    counting = CountedNetwork(net)
    plugin = load("attacks", name)
    target = ClassifierTarget(counting, num_classes=classes, input_shape=(2, 5, 6))
    found = plugin(plugin.Params(**params)).run(target, batch, ThreatModel(norm, 1.0), SampleRng(0, batch.index))
    assert int(found.forwards.sum()) == counting.forwards
    assert int(found.backwards.sum()) == counting.backwards
    assert found.adversarial.min() >= 0
    assert found.adversarial.max() <= 1
    assert found.success.all()
    assert (net(found.adversarial).argmax(1) != batch.labels).all()
    assert torch.allclose(found.extras["norm"], distance(found.adversarial - batch.inputs, norm), rtol=1e-5)
    assert torch.equal(found.adversarial[0], batch.inputs[0])
    assert found.forwards[0] == 1


@every
def test_a_goal_is_reached_and_costs_more_than_any_change(name, norm, params):
    net = network(4)
    batch = samples(net)
    any_change = run(name, norm, params, net, batch).extras["norm"]
    now = net(batch.inputs).argmax(1)
    goals = (now + 1) % 4
    goals[1] = now[1]  # there as it comes
    found = run(name, norm, params, net, Batch(batch.inputs, now, batch.index, goals=goals))
    reached = net(found.adversarial).argmax(1) == goals
    assert torch.equal(found.success, reached)
    assert reached.sum() >= len(batch) - 1  # one goal is farther than the fewest steps go
    assert found.extras["norm"][1] == 0
    farther = found.extras["norm"][2:]
    assert (farther >= 0.8 * any_change[2:]).all()  # each search is only near to its optimum
    assert farther.median() > any_change[2:].median()


class InBfloat16(nn.Module):
    """Float images in, logits of 8 bits out: decisions near a boundary are rounding."""

    def __init__(self, net):
        super().__init__()
        self.net = net.bfloat16()

    def forward(self, x):
        return self.net(x.bfloat16())


@every
def test_other_precisions(name, norm, params):
    batch = samples(network(5))
    exact = run(name, norm, params, network(5), batch)
    double = Batch(batch.inputs.double(), batch.labels, batch.index)
    for net, given in ((InBfloat16(network(5)), batch), (network(5).double(), double)):
        target = ClassifierTarget(net, num_classes=5, input_shape=(2, 5, 6))
        plugin = load("attacks", name)
        found = plugin(plugin.Params(**params)).run(target, given, ThreatModel(norm, 1.0), SampleRng(0, given.index))
        assert found.success.all()
        assert (net(found.adversarial).argmax(1) != given.labels).all()
        assert found.extras["norm"].median() == pytest.approx(float(exact.extras["norm"].median()), rel=0.25)


@pytest.mark.parametrize(("looks", "ended_at"), [(1, 2), (2, 7)])
def test_a_search_that_rises_for_once_may_go_on(looks, ended_at):
    one, zero, no = torch.ones(1), torch.zeros(1), torch.zeros(1, dtype=torch.bool)
    state = MinNormState(torch.tensor([0]), one, one, zero, zero, zero, no, one, one, one * torch.inf, no)
    search = ConstantSearch(steps=10, values=9, abort_early=True, looks=looks)
    search.begin(state, first=one)
    objectives = iter([5.0, 4.0, 4.5, 3.0, 2.0, 1.0, 1.0, 1.0, 0.5])
    ended = [bool(search.ended(state, torch.tensor([value]))) for value in objectives]
    assert ended.index(True) == ended_at


@pytest.mark.slow
@pytest.mark.shared_data
def test_giving_up_early_costs_little_where_gradients_mislead(shared_data):
    net = adversarially_trained_lenet(shared_data)
    test = load_splits("mnist", {"root": str(shared_data / "mnist")}, SplitParams(test=8)).test
    far = [
        robustkd.attack("ead", net, test.unit(), test.labels, norm="l1", eps=1.0, steps=100, binary_steps=6, abort_early=early)
        for early in (True, False)
    ]
    early, late = (float(np.median(found.outcome.norm)) for found in far)
    assert early <= 1.05 * late
