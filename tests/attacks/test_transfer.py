"""Transfer attacks: on linear models the examples, and what they do to another linear model, are known exactly."""

import pytest
import torch
from torch import nn

import robustkd
from robustkd import plugins
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan
from robustkd.contracts import Batch, TargetError, ThreatModel, UsageError
from robustkd.contracts.random import SampleRng
from robustkd.plugins import load
from robustkd.scoring.distances import distance
from robustkd.targets import ClassifierTarget
from support.campaigns import tiny_campaign
from support.counted_network import CountedNetwork

EPS = 0.1


def linear(seed):
    """Undecided at grey, so that both classes come up."""
    torch.manual_seed(seed)
    layer = nn.Linear(16, 2)
    layer.bias.data = -0.5 * layer.weight.data.sum(1)
    return nn.Sequential(nn.Flatten(), layer)


@pytest.fixture
def samples():
    """Away from black and white, so that the pixel range plays no part."""
    torch.manual_seed(9)
    x = torch.rand(200, 1, 4, 4) * 0.6 + 0.2
    return x, linear(0)(x).argmax(1)


def expected(surrogate, target, x, y):
    """Every pixel moves by eps along the sign of the surrogate's own weights, against the label."""
    w = (surrogate[1].weight[1] - surrogate[1].weight[0]).detach()
    direction = torch.where(y == 0, 1.0, -1.0).view(-1, 1, 1, 1) * w.sign().view(1, 1, 4, 4)
    return target(x + EPS * direction).argmax(1) != y


def test_on_linear_models_it_breaks_exactly_what_it_must(samples):
    x, y = samples
    target, one, two = linear(0), linear(1), linear(2)
    wanted = {"one": expected(one, target, x, y), "two": expected(two, target, x, y)}
    assert int((wanted["one"] ^ wanted["two"]).sum()) > 20
    models = {"one": one, "two": two}
    for name in models:
        found = robustkd.attack("transfer", target, x, y, eps=EPS, models=models, surrogates=name)
        assert torch.equal(torch.as_tensor(found.success), wanted[name])
    both = robustkd.attack("transfer", target, x, y, eps=EPS, models=models, surrogates=["one", "two"], attacks=["fgsm", "pgd"])
    assert torch.equal(torch.as_tensor(both.success), wanted["one"] | wanted["two"])


def test_momentum_attacks_may_begin_anywhere_in_the_ball_each_of_a_list_elsewhere(samples):
    x, y = samples
    target = ClassifierTarget(linear(0), num_classes=2, input_shape=(1, 4, 4))
    batch, rng = Batch(x, y, torch.arange(len(x))), SampleRng(0, torch.arange(len(x)))

    def away(fork, **params):
        kind = load("attacks", "mi-fgsm")
        attack = kind(kind.Params(steps=1, step_size=1e-6, **params))
        return attack.run(target, batch, ThreatModel(eps=EPS), rng.fork(fork)).adversarial - x

    one, other, clean = away(0, random_start=True), away(1, random_start=True), away(0)
    assert clean.abs().max() < 1e-5
    assert not torch.allclose(one, other)
    for moved in (one, other):
        assert moved.abs().max() <= EPS + 1e-6
        assert moved.flatten(1).abs().amax(1).min() > EPS / 2  # of 16 uniform numbers the largest


def test_a_surrogate_that_is_wrong_from_the_start_is_climbed_all_the_same(samples):
    x, y = samples
    target, other = linear(0), linear(1)
    wrong = torch.as_tensor(other(x).argmax(1) != y)
    assert wrong.any()
    found = robustkd.attack("transfer", target, x, y, eps=EPS, models={"other": other}, surrogates=["other"])
    moved = (found.adversarial - x).flatten(1).abs().amax(1)
    assert torch.allclose(moved, torch.tensor(EPS), atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    "attack", ["fgsm", {"kind": "mi-fgsm", "steps": 3}, {"kind": "apgd-ce", "steps": 5}, "cw-l2", "square"]
)
def test_budget_counts_and_independence_of_the_batch(attack, norm, samples):
    x, y = samples[0][:24], samples[1][:24]
    attack = {"kind": "square", "queries": 20} if attack == "square" else attack
    if norm == "linf" and attack == "cw-l2":
        pytest.skip("minimises another norm")
    target, other = CountedNetwork(linear(0)), CountedNetwork(linear(1))
    held = {"other": ClassifierTarget(other, num_classes=2, input_shape=(1, 4, 4))}
    plugin = load("attacks", "transfer")
    made = plugin(plugin.Params(surrogates=("other",), attacks=attack)).with_targets(held)
    goal = ClassifierTarget(target, num_classes=2, input_shape=(1, 4, 4))
    batch, threat = Batch(x, y, torch.arange(24)), ThreatModel(norm, EPS if norm == "linf" else 0.3)
    whole = made.run(goal, batch, threat, SampleRng(0, batch.index))
    assert int(whole.forwards.sum()) == target.forwards + other.forwards
    assert int(whole.backwards.sum()) == other.backwards
    assert target.backwards == 0
    assert (distance(whole.adversarial - x, norm) <= threat.eps * (1 + 1e-5)).all()
    assert torch.equal(target(whole.adversarial).argmax(1) != y, whole.success)
    rows = torch.tensor([17, 2, 9])
    some = made.run(goal, batch.select(rows), threat, SampleRng(0, batch.index[rows]))
    assert torch.allclose(some.adversarial, whole.adversarial[rows], atol=1e-5)
    assert torch.equal(some.forwards, whole.forwards[rows])


def test_mistakes_are_named(samples):
    x, y = samples
    with pytest.raises(UsageError, match=r"refers to 'other', which was not handed over[\s\S]*models="):
        robustkd.attack("transfer", linear(0), x, y, surrogates=["other"])
    three = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(TargetError, match="surrogate 'other' has 3 classes, the target 2"):
        robustkd.attack("transfer", linear(0), x, y, surrogates=["other"], models={"other": three})
    with pytest.raises(UsageError, match="stepz"):
        robustkd.attack("transfer", linear(0), x, y, surrogates=["other"], attacks=[{"kind": "pgd", "stepz": 1}])


CAMPAIGN = tiny_campaign(
    "transfer",
    {
        "victim": "{kind: standard, model: tiny-cnn, epochs: 8}",
        "helper": "{kind: standard, model: tiny-cnn, epochs: 8, replica: 1}",
    },
    {
        "pgd": "{kind: pgd}",
        "transfer": "{kind: transfer, surrogates: [helper], attacks: [{kind: mi-fgsm, steps: 10}, {kind: eot, attack: pgd, samples: 1}]}",
    },
    train=600,
    test=80,
    checks=None,
    matrix="{exclude: [{defense: helper}]}",
)


def campaign(tmp_path, text=CAMPAIGN):
    return plan.build(spec.from_text(text, "transfer.yaml", tmp_path))


@pytest.mark.usefixtures("no_remedies")
def test_in_a_campaign(tmp_path):
    planned = campaign(tmp_path)
    cells = {cell.plugin or cell.defense: cell for cell in planned.cells if cell.kind != "checks"}
    assert cells["transfer"].needs == (cells["victim"].id, cells["helper"].id)
    results = run(planned, tmp_path / "out", plugins.load("engines", "inline")(0))
    assert not [cell.error for cell in results.cells if cell.error]
    robust = {cell.attack: cell.robust_accuracy for cell in results.cells}
    clean = results.defenses[0].clean_accuracy
    assert robust["pgd"] <= robust["transfer"] < clean - 0.05
    assert results.defenses[0].verdict is not None
    assert [item.defense for item in results.defenses] == ["victim"]  # the helper is only there to help


def test_what_the_surrogate_is_belongs_to_the_identity_and_its_name_does_not(tmp_path):
    def cell(text):
        return next(c for c in campaign(tmp_path, text).of("attack") if c.attack == "transfer").id

    assert cell(CAMPAIGN) != cell(CAMPAIGN.replace("replica: 1", "replica: 2"))
    assert cell(CAMPAIGN) == cell(CAMPAIGN.replace("helper", "other"))
    with pytest.raises(UsageError, match=r"transfer\.yaml:11: attacks\.transfer: refers to the defense 'halper'.*'helper'"):
        campaign(tmp_path, CAMPAIGN.replace("[helper]", "[halper]"))
    nested = CAMPAIGN.replace("{kind: pgd}", "{kind: eot, attack: {kind: transfer, surrogates: helper}}")
    assert len(campaign(tmp_path, nested).of("attack")[0].needs) == 2
