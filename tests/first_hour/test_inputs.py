"""What a user's inputs look like: bounds and shapes, one line of the user's for each; the right number, or one sentence."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustkd
from robustkd import plugins
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.cli import main
from robustkd.contracts import Attack, RobustkdError
from robustkd.targets import ClassifierTarget
from support.campaigns import tiny_campaign
from support.families import FAMILIES, brief
from support.first_hour import robust_accuracy_of

LOW = torch.tensor([0.0, 0, -1, 0, 5, 0, 0, 0, -3, 0, 0, 0])
HIGH = torch.tensor([1.0, 10, 1, 0.2, 6, 2, 3, 0.5, 3, 1, 1, 4])
BUDGETS = {"linf": 0.3, "l2": 0.8, "l1": 1.5, "l0": 2.0}


def linear() -> nn.Linear:
    net = nn.Linear(12, 2)
    net.weight.data = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    net.bias.data = -(net.weight.data @ ((LOW + HIGH) / 2))
    return net


NET = linear()
X = LOW + (HIGH - LOW) * torch.rand(60, 12, generator=torch.Generator().manual_seed(1))
Y = NET(X).argmax(1)


def broken(norm: str) -> np.ndarray:
    """(N,) bool: whether the linear network can be fooled inside the budget and the box; exact."""
    weight = (NET.weight[1] - NET.weight[0]).detach()
    uphill = torch.where(Y == 1, -1.0, 1.0)[:, None] * weight
    room, slope, eps = torch.where(uphill > 0, HIGH - X, X - LOW), uphill.abs(), BUDGETS[norm]
    if norm == "linf":
        gain = (slope * room.clamp_max(eps)).sum(1)
    elif norm == "l1":
        order = slope.argsort(1, descending=True)
        then, steep = room.gather(1, order), slope.gather(1, order)
        gain = (steep * (eps - (then.cumsum(1) - then)).clamp_min(0).minimum(then)).sum(1)
    elif norm == "l0":
        gain = (slope * room).sort(1, descending=True).values[:, : int(eps)].sum(1)
    else:
        least, most = torch.zeros(60), torch.full((60,), 1e6)
        for _ in range(100):
            time = (least + most) / 2
            over = (time[:, None] * slope).minimum(room).norm(dim=1) > eps
            least, most = torch.where(over, least, time), torch.where(over, time, most)
        gain = (slope * (least[:, None] * slope).minimum(room)).sum(1)
    return (gain > (NET(X)[:, 1] - NET(X)[:, 0]).abs().detach()).numpy()


EXACT = {
    "linf": ("fgsm", "pgd", "bim", "apgd-ce", "apgd-dlr", "fmn", "cw-linf", "deepfool", "fab"),
    "l2": ("pgd", "apgd-ce", "apgd-dlr", "fmn", "ddn", "cw-l2", "deepfool", "fab"),
    "l1": ("apgd-ce", "apgd-dlr", "fmn", "fab", "ead"),
}


@pytest.mark.parametrize(("norm", "attack"), [(norm, attack) for norm, attacks in EXACT.items() for attack in attacks])
def test_a_box_of_unequal_ranges(norm: Any, attack: str) -> None:
    params = {"steps": 40} if attack in ("pgd", "bim") else {}
    found = robustkd.attack(attack, NET, X, Y, norm=norm, eps=BUDGETS[norm], bounds=(LOW, HIGH), params=params)
    assert (found.success == broken(norm)).all()
    adversarial = found.adversarial
    assert bool(((adversarial >= LOW) & (adversarial <= HIGH)).all())
    order = {"linf": float("inf"), "l2": 2, "l1": 1}[norm]
    moved = torch.linalg.vector_norm(adversarial - X, order, dim=1).numpy()
    assert np.allclose(moved, found.outcome.distance, atol=1e-5)
    assert (moved[found.success] <= BUDGETS[norm] + 1e-5).all()


@pytest.mark.parametrize("attack", ["pgd", "fmn", "ead", "cw-l2", "ddn", "nes"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_nothing_is_broken_that_cannot_be(norm: Any, attack: str) -> None:
    given = {"norm": norm, "eps": BUDGETS[norm], "bounds": (LOW.tolist(), HIGH.numpy())}
    if norm == "l0" and attack in ("pgd", "nes"):
        with pytest.raises(RobustkdError, match="cannot respect a budget in l0"):
            robustkd.attack(attack, NET, X, Y, **given)
        return
    found = robustkd.attack(attack, NET, X, Y, params={"steps": 20}, **given)
    assert not (found.success & ~broken(norm)).any()


@pytest.mark.usefixtures("no_escalation")
def test_an_evaluation_with_its_checks_on_a_box() -> None:
    report = robustkd.evaluate(NET, X, Y, norm="l2", eps=0.8, bounds=(LOW, HIGH), samples=8)
    assert report.robust_accuracy == 1 - broken("l2").mean()
    assert not [finding.name for finding in report.findings if not finding.ran]
    assert "threat-model-audit" not in [finding.name for finding in report.findings if finding.fired]


def pictures() -> tuple[nn.Module, Tensor, Tensor]:
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    net[1].weight.data = torch.randn(3, 48, generator=torch.Generator().manual_seed(2))
    x = (torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(3)) * 255).round() / 255
    return net, x, net(x).argmax(1)


class Shifted(nn.Module):
    """The same network for inputs in other bounds."""

    def __init__(self, net: nn.Module, low: float, high: float) -> None:
        super().__init__()
        self.net, self.low, self.high = net, low, high

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x.float() - self.low) / (self.high - self.low))


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0, 255), (-0.5, 0.5)])
@pytest.mark.parametrize("attack", ["pgd", "square", "fmn", "cw-l2", "foolbox:LinfPGD", "torchattacks:PGD"])
def test_the_same_picture_in_other_bounds(bounds: tuple[float, float], attack: str) -> None:
    net, x, y = pictures()
    low, high = bounds
    params = {"queries": 100} if attack == "square" else {"steps": 10}
    known = robustkd.attack(attack, net, x, y, eps=8 / 255, params=params)
    given = low + x * (high - low)
    model = Shifted(net, low, high)
    found = robustkd.attack(attack, model, given, y, eps=8 / 255 * (high - low), bounds=bounds, params=params)
    assert 0 < known.robust_accuracy < 1
    assert found.robust_accuracy == known.robust_accuracy
    assert np.allclose(found.outcome.distance, known.outcome.distance * (high - low), rtol=1e-2)
    assert float(found.adversarial.min()) >= low
    assert float(found.adversarial.max()) <= high
    own = ClassifierTarget(model, num_classes=3, input_shape=(3, 4, 4), bounds=(float(low), float(high)))
    again = robustkd.attack(attack, own, given, y, eps=8 / 255 * (high - low), params=params)
    assert (again.success == found.success).all()


def test_bytes() -> None:
    net, x, y = pictures()
    known = robustkd.attack("pgd", net, x, y, eps=8 / 255)
    found = robustkd.attack("pgd", Shifted(net, 0, 255), (x * 255).round().byte(), y, eps=8, bounds=(0, 255))
    assert found.robust_accuracy == known.robust_accuracy


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"bounds": (1, -1)}, "bounds are no ranges"),
        ({"bounds": 255}, "do not fit"),
        ({"bounds": ([0, 0], [1, 1])}, "do not fit a sample of shape"),
        ({"bounds": ("a", "b")}, "do not fit"),
        ({"bounds": (0, float("inf"))}, "no ranges"),
        ({"bounds": (0.5, 1)}, "outside the bounds, first in feature"),
        ({"bounds": (0, 255), "eps": 300}, "more than the distance between any two inputs"),
    ],
)
def test_bounds_that_cannot_be(given: dict[str, Any], said: str) -> None:
    net, x, y = pictures()
    with pytest.raises(RobustkdError, match=f"{said}(.|\n)*fix: "):
        robustkd.attack("pgd", net, x, y, **given)


MODEL = """
import torch
from torch import nn

def build(low=0.0, high=1.0):
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.head = nn.Linear(64, 10)

        def forward(self, x):
            return self.head((x.flatten(1) - low) / (high - low))
    return Shifted()

def wide():
    return build(-1.0, 1.0)
"""


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.py").write_text(MODEL)
    numbers = []
    for code, more in (("build", ("--eps", "0.02")), ("wide", ("--eps", "0.04", "--bounds", "[-1, 1]"))):
        command = ["robustkd", "attack", "pgd", "--model", f"{tmp_path / 'm.py'}:{code}", "--n", "200", "--json", *more]
        numbers.append(robust_accuracy_of(command, monkeypatch, capsys))
    assert numbers[0] == numbers[1]
    monkeypatch.setattr(sys, "argv", [*command[:-4], "--bounds", "[-1, 1]"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--bounds without --eps" in capsys.readouterr().err


def test_a_campaign(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(MODEL)
    text = tiny_campaign(
        "bounds",
        {
            "plain": '{kind: external, code: "m.py:build"}',
            "wide": '{kind: external, code: "m.py:wide", bounds: [-1, 1]}',
        },
        {"pgd": "{kind: pgd, steps: 5}"},
        train=None,
        test=60,
        eps=0.02,
    )
    results = run(
        planning.build(spec.from_text(text, "bounds.yaml", tmp_path)),
        tmp_path / "out",
        InlineEngine(),
        device="cpu",
        observers=[],
    )
    numbers = {cell.defense: (cell.clean_accuracy, cell.robust_accuracy) for cell in results.cells}
    assert numbers["plain"] == numbers["wide"]
    with pytest.raises(RobustkdError, match=r"bounds"):
        spec.from_text(text.replace("[-1, 1]", "[1, -1]"), "bounds.yaml", tmp_path)


SHAPES = ((12,), (3, 4), (1, 2, 2, 3), (3, 2, 2))
QUICK: dict[str, dict[str, Any]] = {
    "autoattack": {"steps": 5, "queries": 20},
    "square": {"queries": 20},
    **{key: {"queries": 20} for key in ("simba", "bandits", "hopskipjump", "rays", "surfree", "geoda", "random-directions")},
    "distilled-surrogate": {"rounds": 1, "training_steps": 5, "steps": 3, "queries": 20},
    "universal": {"epochs": 1},
    "transfer": {"surrogates": "other", "attacks": {"kind": "pgd", "steps": 3}},
    "eot": {"attack": {"kind": "pgd", "steps": 3}, "samples": 2},
    "bpda": {"attack": {"kind": "pgd", "steps": 3}},
    "ead": {"steps": 5},
    "nes": {"steps": 3},
    "spsa": {"steps": 3, "pairs": 8},
    "polish": {"starts": 2, "steps": 5, "free": 8},
}
IMAGES = {"square", "adv-encoder", "di2-fgsm", "ti-fgsm", "bsr", "ssa", "corruption"}


def of_images() -> list[str]:
    names = [info.name for info in plugins.listing("attacks") if info.name not in FAMILIES]
    return sorted(name for name in names if issubclass(plugins.load("attacks", name), Attack))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", of_images())
def test_every_attack_on_every_shape(name: str, shape: tuple[int, ...]) -> None:
    net = nn.Sequential(nn.Flatten(), linear())
    unit = (X - LOW) / (HIGH - LOW)
    net[1].weight.data = net[1].weight.data * 0.2
    net[1].bias.data = -net[1].weight.data.sum(1) / 2
    x = unit.reshape(-1, *shape)
    y = net(x).argmax(1)
    weight = (net[1].weight[1] - net[1].weight[0]).detach()
    uphill = torch.where(y == 1, -1.0, 1.0)[:, None] * weight
    gain = (uphill.abs() * torch.where(uphill > 0, 1 - unit, unit).clamp_max(0.1)).sum(1)
    possible = (gain > (net(x)[:, 1] - net(x)[:, 0]).abs()).numpy()
    given: dict[str, Any] = {
        "eps": 0.1,
        "models": {"other": net},
        "fit_data": (x, y),
        "params": brief(name) | QUICK.get(name, {}),
    }
    refused = name in IMAGES and len(shape) != 3
    try:
        found = robustkd.attack(name, net, x, y, **given)
    except RobustkdError as error:
        said = str(error)
    else:
        assert not refused
        assert name == "corruption" or not (found.success & ~possible).any()
        assert found.adversarial.shape == x.shape
        return
    assert refused == ("is for images (C, H, W)" in said)
    assert not any(word in said for word in ("raised", "Extra inputs"))
    assert len(said.splitlines()) <= 2


def test_autoattack_on_a_table_is_run_without_square(caplog: pytest.LogCaptureFixture) -> None:
    for version in ("standard", "plus", "adaptive"):
        given = {"version": version, "steps": 10, "queries": 20}
        found = robustkd.attack("autoattack", NET, X, Y, norm="l2", eps=0.8, bounds=(LOW, HIGH), params=given)
        assert (found.success == broken("l2")).all()
    assert caplog.text.count("is run without square") == 3


def test_what_was_found_is_saved_in_the_unit_of_the_inputs(tmp_path):
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(3, 4), torch.rand(12, 3) * 10 - 5
    y = linear(x).argmax(1)
    found = robustkd.attack("pgd", linear, x, y, norm="linf", eps=0.5, bounds=(-5, 5))
    found.save(tmp_path / "adv.npz")
    with np.load(tmp_path / "adv.npz") as saved:
        assert np.allclose(saved["x"], x, atol=1e-5)
        assert np.all(saved["eps"] == 0.5)
        assert np.all(np.abs(saved["adversarial"] - saved["x"]).max(1) <= 0.5 + 1e-5)
        again = linear(torch.from_numpy(saved["adversarial"])).argmax(1).numpy()
    assert np.array_equal(again != y.numpy(), found.success)
