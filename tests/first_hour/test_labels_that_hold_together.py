"""Labels that may hold together, in a campaign and from the commands: the right number from a file, or one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import robustkd
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.plan.plan import Plan
from robustkd.cli import cli
from robustkd.contracts import RobustkdError

EPS = 0.02
WEIGHTS = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
MODEL = f"""
import torch
from torch import nn

def build(soft=False):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False))
    net[1].weight.data = torch.tensor({WEIGHTS.tolist()})
    return nn.Sequential(net, nn.Sigmoid()) if soft else net
"""
FILE = """
version: 1
name: labels
data: {name: npz, file: data.npz, success: any}
threat: {norm: linf, eps: 0.02}
defenses:
  mine: {kind: external, code: "m.py:build"}
  soft: {kind: external, code: "m.py:build", kwargs: {soft: true}}
attacks:
  fab: {kind: fab}
  pgd: {kind: pgd, steps: 10}
checks: {level: standard, samples: 8}
"""


def written(folder: Path, text: str = FILE) -> Path:
    x = np.random.default_rng(1).random((40, 1, 8, 8), np.float32)
    logits = x.reshape(40, -1) @ WEIGHTS.T
    y = (logits > 0).astype(np.float32)
    y[:5, 1] = 1 - y[:5, 1]  # five samples with a wrong label
    np.savez(folder / "data.npz", images=x, labels=y, classes=np.array(["cat", "dog", "sun", "sea"]))
    torch.save({"images": torch.from_numpy(x), "labels": torch.from_numpy(y)}, folder / "data.pt")
    (folder / "m.py").write_text(MODEL)
    (folder / "own.py").write_text(
        f"import torch\ndef load():\n    found = torch.load({str(folder / 'data.pt')!r})\n"
        "    return torch.utils.data.TensorDataset(found['images'], found['labels'])\n"
    )
    (folder / "c.yaml").write_text(text)
    return folder / "c.yaml"


def kept() -> np.ndarray:
    """(N, L) bool: whether a label of the linear network withstands every perturbation inside the budget; exact."""
    x = np.random.default_rng(1).random((40, 1, 8, 8), np.float32).reshape(40, -1)
    uphill = np.where((x @ WEIGHTS.T > 0)[:, :, None], -1, 1) * WEIGHTS
    room = np.where(uphill > 0, 1 - x[:, None], x[:, None]).clip(max=EPS)
    found: np.ndarray = (abs(uphill) * room).sum(2) < abs(x @ WEIGHTS.T)
    found[:5, 1] = False
    return found


def planned(folder: Path, text: str) -> Plan:
    return planning.build(spec.load(written(folder, text)))


def test_any_of_them(tmp_path: Path) -> None:
    results = robustkd.run(written(tmp_path), tmp_path / "out", device="cpu", workers=0)
    for cell in results.cells:
        assert cell.clean_accuracy == 35 / 40
        assert cell.attack != "fab" or cell.robust_accuracy == kept().all(1).mean()
    for row in results.defenses:
        assert row.robust_accuracy == kept().all(1).mean()
        assert not [check.name for check in row.checks if check.outcome == "not run"]
    assert "all of them are right" in results.data.notes[0]
    assert "all of them are right" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    "data", ["name: npz, file: data.npz", "name: stored, file: data.pt", 'name: code, code: "own.py:load"']
)
def test_one_of_them(tmp_path: Path, data: str) -> None:
    text = FILE.replace("name: npz, file: data.npz, success: any", f"{data}, success: {{label: 1}}")
    text = text.replace("{level: standard, samples: 8}", "none").replace(
        '  soft: {kind: external, code: "m.py:build", kwargs: {soft: true}}\n', ""
    )
    results = robustkd.run(written(tmp_path, text), tmp_path / "out", device="cpu", workers=0)
    for cell in results.cells:
        assert cell.clean_accuracy == 35 / 40
        assert cell.robust_accuracy == kept()[:, 1].mean()


def test_a_label_by_its_name_is_the_one_of_that_number(tmp_path: Path) -> None:
    plans = [planned(tmp_path, FILE.replace("success: any", f"success: {{label: {label}}}")) for label in ("dog", 1, 2)]
    named, numbered, other = ({cell.id for cell in plan.cells} for plan in plans)
    assert named == numbered
    assert not named & other
    assert plans[0].data.classes == ("not dog", "dog")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (", success: any", "", "a row for each sample"),
        ("any}", "{label: 4}}", "names the label 4, of 4"),
        ("any}", "{label: cow}}", "no label 'cow'"),
        ("any}", "all}", "success"),
        ("name: npz, file: data.npz", "name: digits", "one class for each sample"),
        ('external, code: "m.py:build"}', "standard, model: tiny-cnn}", "one class of each sample"),
    ],
)
def test_what_a_success_cannot_be(tmp_path: Path, before: str, after: str, said: str) -> None:
    assert before in FILE
    with pytest.raises(RobustkdError, match=f"{said}(.|\n)*fix: "):
        planned(tmp_path, FILE.replace(before, after, 1))


@pytest.mark.parametrize(("success", "held"), [("any", kept().all(1)), ("{label: 1}", kept()[:, 1])])
def test_from_the_command(tmp_path: Path, success: str, held: np.ndarray) -> None:
    written(tmp_path)
    asked = [
        "--data",
        "npz",
        "--data-set",
        f"file={tmp_path / 'data.npz'}",
        "--data-set",
        f"success={success}",
        "--eps",
        str(EPS),
    ]
    command = ["attack", "fab", "--model", f"{tmp_path / 'm.py'}:build", *asked, "--device", "cpu", "--json"]
    found = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert json.loads(found.stdout)["robust_accuracy"] == held.mean()
