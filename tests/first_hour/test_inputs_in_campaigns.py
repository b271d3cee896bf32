"""Tables and sequences in a campaign: the right number from a file, in the user's unit, or one sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import robustkd
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.results.data_summary import data_summary
from robustkd.cli import cli
from robustkd.contracts import RobustkdError
from robustkd.tracking.records import campaign_record, cell_record
from support import tracked_campaign

LOW = np.array([0.0, 0, -1, 0, 5, 0, 0, 0, -3, 0, 0, 0])
HIGH = np.array([1.0, 10, 1, 0.2, 6, 2, 3, 0.5, 3, 1, 1, 4])
WEIGHT = np.random.default_rng(0).normal(size=12)
MIDDLE = WEIGHT @ ((LOW + HIGH) / 2)
EPS = 0.3
MODEL = f"""
import torch
from torch import nn

def build():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    net[1].weight.data = torch.tensor([[0.0] * 12, {WEIGHT.tolist()}])
    net[1].bias.data = torch.tensor([0.0, {-MIDDLE}])
    return net
"""
FILE = f"""
version: 1
name: table
data: {{name: npz, file: table.npz, bounds: [{LOW.tolist()}, {HIGH.tolist()}]}}
threat: {{norm: linf, eps: 0.3, curve: [0.1]}}
defenses:
  linear: {{kind: external, code: "m.py:build"}}
attacks:
  pgd: {{kind: pgd, steps: 10}}
  square: {{kind: square, queries: 20}}
checks: {{level: standard, samples: 8}}
"""


def samples() -> tuple[np.ndarray, np.ndarray]:
    x = (LOW + (HIGH - LOW) * np.random.default_rng(1).random((60, 12))).astype(np.float32)
    return x, (x @ WEIGHT > MIDDLE).astype(int)


def broken(x: np.ndarray, y: np.ndarray, eps: float) -> np.ndarray:
    """(N,) bool: whether the linear network can be fooled inside the budget and the box; exact."""
    uphill = np.where(y == 1, -1.0, 1.0)[:, None] * WEIGHT
    room = np.where(uphill > 0, HIGH - x, x - LOW).clip(max=eps)
    gain: np.ndarray = (abs(uphill) * room).sum(1)
    return gain > abs(x @ WEIGHT - MIDDLE)


def planned(folder: Path, written: str = FILE, x: np.ndarray | None = None) -> Plan:
    given, y = samples()
    np.savez(folder / "table.npz", images=given if x is None else x, labels=y)
    (folder / "m.py").write_text(MODEL)
    (folder / "table.yaml").write_text(written)
    return planning.build(spec.load(folder / "table.yaml"))


def test_a_table_with_a_range_for_each_feature(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert [(item.attack, item.reason) for item in plan.skipped] == [
        ("square", "is for images (C, H, W), and the inputs have the shape (12,)")
    ]
    results = robustkd.run(tmp_path / "table.yaml", tmp_path / "out", device="cpu", workers=0)
    x, y = samples()
    (cell,) = results.cells
    assert cell.clean_accuracy == 1
    assert cell.robust_accuracy == pytest.approx(1 - broken(x, y, EPS).mean())
    assert [(round(point.eps * 10, 9), point.robust_accuracy) for point in cell.curve if point.eps] == [
        (eps, pytest.approx(1 - broken(x, y, eps).mean())) for eps in (0.1, 0.3)
    ]
    checks = results.defenses[0].checks
    assert checks
    assert not [check.name for check in checks if check.outcome == "not run"]
    assert "divided by 10" in results.data.notes[0]
    assert "divided by 10" in (tmp_path / "out" / "report.md").read_text()
    assert "are no images" in (tmp_path / "out" / "report.html").read_text()


def test_attacks_that_know_one_range_are_left_out_where_the_ranges_differ(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def attack(model, x, y, eps): return x")
    begin, _, end = FILE.partition("  pgd: {kind: pgd, steps: 10}\n  square: {kind: square, queries: 20}\n")
    peers = '  a: "foolbox:LinfPGD"\n  b: {kind: code, code: "mine.py:attack"}\n  c: {kind: eot, attack: "foolbox:LinfPGD"}\n'
    written = begin + peers + end
    plan = planned(tmp_path, written)
    reason = "knows one range for all features, and the bounds of these inputs differ from feature to feature"
    assert [(item.attack, item.reason) for item in plan.skipped] == [("a", reason), ("b", reason), ("c", reason)]


QUICK = FILE.replace("checks: {level: standard, samples: 8}", "checks: none").replace("steps: 10", "steps: 5")


def ran(folder: Path, written: str, out: str = "out") -> float:
    plan = planning.build(spec.from_text(written, "table.yaml", folder))
    results = run(plan, folder / out, InlineEngine(), device="cpu", observers=[])
    (cell,) = [cell for cell in results.cells if cell.attack == "pgd"]
    assert cell.robust_accuracy is not None, results.incomplete
    return cell.robust_accuracy


@pytest.mark.parametrize("shape", [(3, 4), (1, 2, 2, 3)])
def test_sequences_and_volumes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x, y = samples()
    unit = (x - LOW) / (HIGH - LOW)
    planned(tmp_path)
    np.savez(tmp_path / "table.npz", images=(unit * 4 - 2).reshape(-1, *shape).astype(np.float32), labels=y)
    (tmp_path / "m.py").write_text(MODEL.replace("nn.Flatten()", "Back()") + BACK)
    written = QUICK.replace(f"[{LOW.tolist()}, {HIGH.tolist()}]", "[-2, 2], layout: any")
    written = written.replace("eps: 0.3, curve: [0.1]", "eps: 0.4")
    gain = (abs(WEIGHT) * (HIGH - LOW) * np.where((y == 1)[:, None] == (WEIGHT > 0), unit, 1 - unit).clip(max=0.1)).sum(1)
    assert ran(tmp_path, written) == pytest.approx(1 - (gain > abs(x @ WEIGHT - MIDDLE)).mean())


BACK = f"""

class Back(nn.Module):
    def forward(self, x):
        low, high = torch.tensor({LOW.tolist()}), torch.tensor({HIGH.tolist()})
        return low + (high - low) * (x.flatten(1) + 2) / 4
"""


def test_tensors_from_a_file_and_from_a_function(tmp_path: Path) -> None:
    planned(tmp_path)
    known = ran(tmp_path, QUICK)
    x, y = samples()
    torch.save((torch.from_numpy(x), torch.from_numpy(y)), tmp_path / "table.pt")
    (tmp_path / "d.py").write_text(
        "import numpy as np\ndef load():\n    found = np.load('table.npz')\n    return found['images'], found['labels']\n".replace(
            "'table.npz'", repr(str(tmp_path / "table.npz"))
        )
    )
    for name in ("name: stored, file: table.pt", 'name: code, code: "d.py:load"'):
        assert ran(tmp_path, QUICK.replace("name: npz, file: table.npz", name)) == known


def test_bounds_are_part_of_what_a_network_is(tmp_path: Path) -> None:
    plans = [planned(tmp_path, QUICK.replace("10.0", high)) for high in ("10.0", "11.0")]
    first, second = ({cell.id for cell in plan.cells} for plan in plans)
    assert not first & second


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("0.0, 0.0, -1.0", "2.0, 0.0, -1.0", "bounds are no ranges"),
        (f"{LOW.tolist()}", "[0, 0]", "2 lowest values and 12 highest ones"),
        (f"[{LOW.tolist()}, {HIGH.tolist()}]", "[[0, 0], [1, 1]]", "do not fit a sample of shape"),
        (f"[{LOW.tolist()}, {HIGH.tolist()}]", "[0, 1]", "outside"),
        ("10.0", "0.5", "samples are outside the bounds, first in feature"),
        ("eps: 0.3", "eps: 11", "more than the distance between any two inputs"),
        ('external, code: "m.py:build"', "standard, model: tiny-cnn", "is for images .*and the inputs have the shape"),
        ("checks: none", "checks: none\nanalyses: {c: {kind: corruption-robustness, defenses: [linear]}}", "analysis 'c'"),
        ("file: table.npz", "file: table.npz, resize: 8", "'resize' is for images"),
    ],
)
def test_what_cannot_be(tmp_path: Path, before: str, after: str, said: str) -> None:
    assert before in QUICK
    with pytest.raises(RobustkdError, match=f"{said}(.|\n)*fix: "):
        planned(tmp_path, QUICK.replace(before, after))


def test_images_in_bytes_as_floats(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    x, y = generator.integers(0, 256, (40, 1, 3, 4)), generator.integers(0, 2, 40)
    planned(tmp_path)
    found = []
    for scale, data, eps in ((255, "", "0.05"), (1, ", bounds: [0, 255]", "12.75")):
        np.savez(tmp_path / "table.npz", images=(x / scale).astype(np.float32), labels=y)
        divided = "" if scale == 255 else "\n    net = nn.Sequential(nn.Flatten(), Less(), net[1])"
        (tmp_path / "m.py").write_text(MODEL.replace("\n    return net", divided + "\n    return net") + LESS)
        written = QUICK.replace(f", bounds: [{LOW.tolist()}, {HIGH.tolist()}]", data)
        found.append(ran(tmp_path, written.replace("eps: 0.3, curve: [0.1]", f"eps: {eps}"), f"out{scale}"))
    assert 0 < found[0] < 1
    assert found[0] == found[1]


LESS = """

class Less(nn.Module):
    def forward(self, x):
        return x / 255
"""


@pytest.mark.parametrize("command", ["attack", "audit"])
def test_the_commands_take_the_data_s_own_bounds(tmp_path: Path, command: str) -> None:
    planned(tmp_path)
    model = f"{tmp_path / 'm.py'}:build"
    data = [
        "--data",
        "npz",
        "--data-set",
        f"file={tmp_path / 'table.npz'}",
        "--data-set",
        f"bounds=[{LOW.tolist()}, {HIGH.tolist()}]",
    ]
    asked = (
        ["attack", "pgd", "--model", model] if command == "attack" else ["audit", model, "--attack", "pgd", "--samples", "8"]
    )
    found = CliRunner().invoke(cli, [*asked, *data, "--eps", "0.3", "--device", "cpu", "--json"])
    assert json.loads(found.stdout)["robust_accuracy"] == pytest.approx(1 - broken(*samples(), EPS).mean())
    for more, said in (([], "no --eps is given"), (["--eps", "1", "--bounds", "[0, 1]"], "the data have bounds")):
        refused = CliRunner().invoke(cli, [*asked, *data, *more])
        assert said in str(refused.exception)


def test_mlflow_shows_eps_in_the_unit_of_the_data(tmp_path: Path) -> None:
    data = replace(tracked_campaign.DATA, scale=10.0, notes=("the inputs are divided by 10",))
    told = replace(tracked_campaign.results(tracked_campaign.cell()), data=data)
    campaign = replace(tracked_campaign.campaign(), data=data)
    records = [cell_record(campaign, told.cells[0]), campaign_record(campaign, told)]
    assert [(record.params["eps"], record.params["eps_in_data_unit"]) for record in records] == [("0.1", "1")] * 2
    assert "divided by 10" in records[1].tags["mlflow.note.content"]
    assert "eps_in_data_unit" not in cell_record(tracked_campaign.campaign(), told.cells[0]).params
    planned(tmp_path)
    assert data_summary(planning.build(spec.load(tmp_path / "table.yaml"))).scale == 10
