"""Networks with dropout or noise at test time are judged by their expected accuracy, so weak attacks cost them nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import robustkd
from robustkd.campaigns.store.samples import read
from robustkd.campaigns.store.store import Store
from robustkd.cli import cli

N, TINY = 1500, 1e-6
SIX = ["fgsm", "pgd", {"kind": "pgd", "loss": "margin"}, "bim", "mi-fgsm", {"kind": "pgd", "steps": 2}]


class Linear(nn.Module):
    """Two classes, told apart by whether the mean of four pixels is above 1/2."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.flatten(1).mean(1) - 0.5
        return torch.stack([-mean, mean], 1)


class Coin(Linear):
    """Wrong with probability 0.1, by chance alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        wrong = torch.rand(len(x), 1) < 0.1
        return torch.where(wrong, logits.flip(1), logits)


class CoinOfNumpy(Linear):
    """The same, but the numbers are NumPy's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        wrong = torch.from_numpy(np.random.rand(len(x), 1) < 0.1)
        return torch.where(wrong, logits.flip(1), logits)


class CoinOfItsOwn(Linear):
    """The same, but the numbers come from a generator that the network owns."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x)
        wrong = torch.rand(len(x), 1, generator=self.generator) < 0.1
        return torch.where(wrong, logits.flip(1), logits)


class Dropout(nn.Module):
    """A linear network of 64 pixels, half of which are dropped at test time too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 128).view(2, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dropped = nn.functional.dropout(x.flatten(1) - 0.5, 0.5, training=True)
        return dropped @ self.weight.T


def images(side: int, n: int = N) -> torch.Tensor:
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(0))


def labels(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return net(x).argmax(1)


def evaluated(net: nn.Module, x: torch.Tensor, y: torch.Tensor, attacks: list, **more):
    return robustkd.evaluate(net, x, y, attacks=attacks, **{"eps": TINY, "level": "none", **more})


@pytest.mark.parametrize("net", [Coin, CoinOfNumpy, CoinOfItsOwn])
def test_attacks_of_no_strength_cost_nothing_however_many_there_are(net):
    x = images(2)
    y = labels(Linear(), x)
    reports = [evaluated(net(), x, y, SIX[:count]) for count in (1, 6)]
    numbers = [report.robust_accuracy for report in reports]
    assert all(abs(number - 0.9) <= 0.01 for number in numbers), numbers
    assert max(numbers) - min(numbers) <= 0.001, numbers
    assert all(abs(report.clean_accuracy - 0.9) <= 0.01 for report in reports)
    low, high = reports[-1].interval
    assert low < 0.9 < high
    assert all(report.draws == 10 and "10 draws" in str(report) and "10 draws" in report.caption() for report in reports)


def test_a_network_with_dropout_has_its_expected_accuracy():
    torch.manual_seed(0)
    net, x = Dropout(), images(8)
    with torch.no_grad():
        y = ((x.flatten(1) - 0.5) @ net.weight.T).argmax(1)
        truth = float(torch.stack([(net(x).argmax(1) == y).float().mean() for _ in range(300)]).mean())
    assert 0.6 < truth < 0.95
    for count in (1, 6):
        report = evaluated(net, x, y, SIX[:count])
        assert abs(report.clean_accuracy - truth) <= 0.01
        assert abs(report.robust_accuracy - truth) <= 0.01


def test_three_calls_with_one_seed_give_the_same_numbers():
    x = images(2, 300)
    y = labels(Linear(), x)
    before = torch.get_rng_state()
    reports = [robustkd.attack("pgd", Coin(), x, y, eps=0.02, seed=4) for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), before)
    assert len({report.robust_accuracy for report in reports}) == 1
    assert len({report.adversarial.numpy().tobytes() for report in reports}) == 1
    assert reports[0].draws == 10


def test_an_attack_that_moves_the_expectation_breaks_the_samples():
    x = images(2, 400)
    y = labels(Linear(), x)
    report = evaluated(Coin(), x, y, [{"kind": "eot", "attack": {"kind": "pgd", "steps": 5}, "samples": 10}], eps=0.5)
    assert abs(report.robust_accuracy - 0.1) < 0.02  # right by the coin alone
    assert not report.standing.any()


@pytest.mark.slow
def test_the_remedies_do_not_lower_the_number_by_chance():
    x = images(2, 512)
    y = labels(Linear(), x)
    report = evaluated(Coin(), x, y, ["fgsm", "pgd"], level="standard")
    assert {finding.name: finding.fired for finding in report.findings}["randomised-output"]
    assert report.remedy is not None
    assert abs(report.remedy.robust_accuracy - report.robust_accuracy) <= 0.01


def test_a_network_that_draws_nothing_is_judged_once():
    net, x = Linear(), images(2, 300)
    y = labels(net, x)
    report = evaluated(net, x, y, ["fgsm", "pgd"], eps=0.05)
    assert report.draws == 1
    assert "draws" not in str(report)
    assert not any("draws" in name for name in report.attacks["pgd"].outcome.columns())
    expected = float(((x.flatten(1).mean(1) - 0.5).abs() > 0.05).float().mean())
    assert report.robust_accuracy == pytest.approx(expected, abs=0.004)


CODE = """
import torch
from sklearn.datasets import load_digits
from torch import nn


class Means(nn.Module):
    chance = 0.0

    def __init__(self) -> None:
        super().__init__()
        x, y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
        self.means = nn.Parameter(torch.stack([x[y == k].mean(0) / 16 for k in range(10)]).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = -torch.cdist(x.flatten(1), self.means)
        return torch.where(torch.rand(len(x), 1) < self.chance, -logits, logits)


class Coin(Means):
    chance = 0.1


def plain() -> nn.Module:
    return Means()


def coin() -> nn.Module:
    return Coin()
"""
CAMPAIGN = """
version: 1
name: coins
data: {name: digits, test: 500}
threat: {norm: linf, eps: 1.0e-6, curve: [5.0e-7, 2.0e-6]}
checks: none
defenses:
  plain: {kind: external, code: "nets.py:plain"}
  coin: {kind: external, code: "nets.py:coin"}
attacks:
  fgsm: {kind: fgsm}
  pgd: {kind: pgd, steps: 3}
  bim: {kind: bim, steps: 2}
  fmn: {kind: fmn, steps: 5}
  strong: {kind: eot, samples: 10, attack: {kind: pgd, steps: 10}, threat: {norm: linf, eps: 0.4}}
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coins")
    (folder / "nets.py").write_text(CODE)
    (folder / "coins.yaml").write_text(CAMPAIGN)
    command("run", folder / "coins.yaml", "--out", folder / "out", "--no-track", "--workers", 0)
    return folder


def command(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_campaign_reports_the_expected_accuracy(ran: Path) -> None:
    results = robustkd.load(ran / "out")
    plain, coin = results.defenses
    truth = 0.9 * plain.clean_accuracy
    assert abs(coin.clean_accuracy - truth) <= 0.02
    assert abs(coin.robust_accuracy - coin.clean_accuracy) <= 0.002
    assert coin.ci_low < truth < coin.ci_high
    assert (plain.draws, coin.draws) == (1, 10)
    assert min(coin.other_threats.values()) < 0.2
    for point in coin.curve:
        assert abs(point.robust_accuracy - coin.robust_accuracy) <= 0.003
    raw = json.loads((ran / "out" / "results.json").read_text())
    assert [one.get("draws") for one in raw["defenses"]] == [None, 10]
    assert results.comparisons[0].difference == pytest.approx(plain.robust_accuracy - coin.robust_accuracy)
    assert results.comparisons[0].significant
    for name in ("report.html", "report.md"):
        assert "judged on 10 draws" in (ran / "out" / name).read_text()


def test_its_samples_are_stored_compared_and_gated(ran: Path) -> None:
    out, results = ran / "out", robustkd.load(ran / "out")
    cell = next(cell for cell in results.cells if (cell.defense, cell.attack) == ("coin", "pgd"))
    entry = Store(out).get(cell.cell_id)
    assert entry is not None
    record = read(entry)
    assert record.outcome.robust_share.mean() == pytest.approx(cell.robust_accuracy)
    assert set(np.unique(np.rint(10 * record.outcome.robust_share))) <= set(range(11))
    command("gate", out, "--write-baseline", ran / "baseline.json")
    assert "passed" in command("gate", out, "--baseline", ran / "baseline.json")
    told = robustkd.compare(out, ran / "baseline.json")
    assert all(item.difference == pytest.approx(0) and item.direction == "not told apart" for item in told.movements)
    command("store", "export", ran / "coins.yaml", ran / "samples.csv", "--out", out)
