"""Universal perturbations: on a linear model the best one is known; on digits it must be worth more than noise of its size."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import robustkd
from robustkd import plugins
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan
from robustkd.cli import cli
from robustkd.contracts import Arrays, Batch, ThreatModel, UsageError
from robustkd.contracts.random import SampleRng
from robustkd.data import SplitParams, load_splits
from robustkd.plugins import load
from robustkd.scoring.distances import distance
from robustkd.targets import ClassifierTarget
from support.campaigns import tiny_campaign
from support.small_networks import learn


def fitted(net, data, threat, seed=0, **params):
    plugin = load("attacks", "universal")
    target = ClassifierTarget(net, num_classes=2, input_shape=data.images.shape[1:])
    return target, plugin(plugin.Params(**params)).fit(target, data, threat, SampleRng(seed, torch.arange(len(data)), "fit"))


@pytest.mark.parametrize("loss", ["ce", "margin"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_model_it_is_the_optimum(norm, loss):
    """With samples of one class, the best perturbation for one is the best for all: eps times the dual direction."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    w = (net[1].weight[1] - net[1].weight[0]).detach().view(1, 3, 4)
    train, x = torch.rand(2, 60, 1, 3, 4) * 0.2 + 0.4
    eps = 0.1
    data = Arrays(train.numpy(), np.zeros(60, dtype=np.int64))
    target, attack = fitted(net, data, ThreatModel(norm, eps), loss=loss, epochs=20, batch_size=30)
    best = eps * (w.sign() if norm == "linf" else w / w.norm())
    assert torch.allclose(attack.perturbation, best, atol=1e-3)
    batch = Batch(x, torch.zeros(60, dtype=torch.int64), torch.arange(60))
    found = attack.run(target, batch, ThreatModel(norm, eps), SampleRng(0, batch.index))
    assert torch.equal(found.success, net(x + attack.perturbation).argmax(1) == 1)
    some = attack.run(target, batch.select(torch.tensor([7, 3])), ThreatModel(norm, eps), SampleRng(0, batch.index[:2]))
    assert torch.equal(some.adversarial, found.adversarial[[7, 3]])


@pytest.fixture(scope="module")
def digits():
    torch.manual_seed(0)
    splits = load_splits("digits", {}, SplitParams(train=800, test=200))
    x, y = torch.from_numpy(splits.train.unit()), torch.from_numpy(splits.train.labels)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return learn(net, x, y, steps=100).eval(), splits


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 1.2)])
def test_on_digits_it_is_worth_more_than_noise_and_less_than_a_perturbation_for_each(norm, eps, digits):
    net, splits = digits
    x, y = torch.from_numpy(splits.test.unit()), torch.from_numpy(splits.test.labels)
    data = (splits.train.unit(), splits.train.labels)
    state = torch.get_rng_state()
    found = robustkd.attack("universal", net, x, y, norm=norm, eps=eps, fit_data=data)
    assert torch.equal(state, torch.get_rng_state())
    each = robustkd.attack("pgd", net, x, y, norm=norm, eps=eps)
    noise = torch.rand(20, 1, 8, 8).round() * 2 - 1
    noise = noise * eps if norm == "linf" else noise / 8 * eps
    by_noise = max(float((net((x + n).clamp(0, 1)).argmax(1) != y).float().mean()) for n in noise)
    assert by_noise + 0.1 < 1 - found.robust_accuracy < 1 - each.robust_accuracy
    moved = found.adversarial - x
    assert distance(moved, norm).max() <= eps * (1 + 1e-5)
    inside = (found.adversarial > 0) & (found.adversarial < 1)
    spread = [moved[:, 0, i, j][inside[:, 0, i, j]] for i in range(8) for j in range(8)]
    changed = torch.as_tensor(found.outcome.distance) > 0
    assert changed.float().mean() > 0.8
    assert max(float(s[s != 0].std()) for s in spread if (s != 0).sum() > 1) < 1e-6  # one perturbation
    assert found.outcome.backwards.sum() == 0


def test_without_training_data_it_says_so(digits):
    x, y = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(UsageError, match=r"learns from training data[\s\S]*fit_data"):
        robustkd.attack("universal", digits[0], x, y)
    target = ClassifierTarget(digits[0], num_classes=10, input_shape=(1, 8, 8))
    with pytest.raises(UsageError, match="must be fitted"):
        load("attacks", "universal")().run(target, Batch(x, y, torch.arange(4)), ThreatModel(), SampleRng(0, torch.arange(4)))


CAMPAIGN = tiny_campaign(
    "universal",
    {"plain": "{kind: standard, model: tiny-cnn, epochs: 8}"},
    {"universal": "{kind: universal}", "through-eot": "{kind: eot, attack: {kind: universal, epochs: 2}, samples: 1}"},
    train=500,
    test=60,
    threat="{norm: linf, eps: 0.2, curve: [0.1]}",
)


def test_in_a_campaign_it_learns_from_the_training_part(tmp_path):
    planned = plan.build(spec.from_text(CAMPAIGN, "universal.yaml", tmp_path))
    results = run(planned, tmp_path / "out", plugins.load("engines", "inline")(0))
    assert [cell.error for cell in results.cells] == [None, None]
    cell = results.cells[0]
    curve = {point.eps: point.robust_accuracy for point in cell.curve}
    assert cell.robust_accuracy <= curve[0.1]
    assert cell.robust_accuracy < results.defenses[0].clean_accuracy


def test_the_command_line_fits_it_to_the_training_part(tmp_path, monkeypatch):
    code = "from torch import nn\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    (tmp_path / "net.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    asked = ["attack", "universal", "--model", "net.py:build", "--n", "20", "--set", "epochs=1", "--json"]
    answer = CliRunner().invoke(cli, asked)
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.output)["backward_passes"] == 0


def test_what_it_refuses():
    attack = load("attacks", "universal")()
    assert "targeted" in attack.refusal(ThreatModel(goal="targeted"))
    assert "l1" in attack.refusal(ThreatModel("l1", 1.0))


def test_the_training_data_belong_to_the_identity(tmp_path):
    def ids(text):
        return [cell.id for cell in plan.build(spec.from_text(text, "universal.yaml", tmp_path)).of("attack")]

    given = CAMPAIGN.replace("kind: standard, model: tiny-cnn, epochs: 8", "kind: external, code: net.py:build")
    (tmp_path / "net.py").write_text("")
    assert not set(ids(given)) & set(ids(given.replace("train: 500", "train: 400")))
    pgd = given.replace("kind: universal", "kind: pgd").replace("epochs: 2", "steps: 2")
    assert ids(pgd) == ids(pgd.replace("train: 500", "train: 400"))
