"""Labels that may hold together, in a campaign and from the commands: the right number from a file, or one sentence."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import robustkd
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.plan.plan import Plan
from robustkd.cli import cli
from robustkd.contracts import RobustkdError
from robustkd.data import SplitParams, load_splits

EPS = 0.02
NAMES = ("cat", "dog", "sun", "sea")
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
    np.savez(folder / "data.npz", images=x, labels=y, classes=np.array(NAMES))
    torch.save({"images": torch.from_numpy(x), "labels": torch.from_numpy(y)}, folder / "data.pt")
    (folder / "m.py").write_text(MODEL)
    (folder / "own.py").write_text(
        f"import torch\ndef load():\n    found = torch.load({str(folder / 'data.pt')!r})\n"
        "    return torch.utils.data.TensorDataset(found['images'], found['labels'])\n"
    )
    (folder / "c.yaml").write_text(text)
    return folder / "c.yaml"


def withstood(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(N, L) bool: whether a label of the linear network is right and withstands every perturbation inside the budget; exact."""
    uphill = np.where((x @ WEIGHTS.T > 0)[:, :, None], -1, 1) * WEIGHTS
    room = np.where(uphill > 0, 1 - x[:, None], x[:, None]).clip(max=EPS)
    found: np.ndarray = (abs(uphill) * room).sum(2) < abs(x @ WEIGHTS.T)
    return found & ((x @ WEIGHTS.T > 0) == y)


def kept() -> np.ndarray:
    """The same of the samples of ``written``."""
    x = np.random.default_rng(1).random((40, 1, 8, 8), np.float32).reshape(40, -1)
    y = x @ WEIGHTS.T > 0
    y[:5, 1] = ~y[:5, 1]
    return withstood(x, y)


def planned(folder: Path, text: str) -> Plan:
    return planning.build(spec.load(written(folder, text)))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([["cat"], "dog"], "1 of 2 rows have a list"),
        ([[0, 1], [1]], "0 or 1 for each"),
        ([["cat"], [None]], "1 of 2 rows have no label"),
        ([["cat"], ["dog"]], "a row for each sample"),
    ],
)
def test_lists_that_are_no_labels(tmp_path: Path, labels: list[Any], said: str) -> None:
    rows = [json.dumps({"file_name": f"{row}.png", "labels": held}) for row, held in enumerate(labels)]
    (tmp_path / "test").mkdir()
    (tmp_path / "test/metadata.jsonl").write_text("\n".join(rows))
    for row in range(len(labels)):
        (tmp_path / f"test/{row}.png").write_bytes(png(np.zeros((1, 4, 4))))
    with pytest.raises(RobustkdError, match=f"{said}(.|\n)*fix: "):
        load_splits("image-folder", {"root": tmp_path})


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


def png(x: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray((x[0] * 255).astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


FORMS = ["parquet-flags", "parquet-numbers", "parquet-texts", "arrow", "columns.csv", "lists.jsonl"]


def tabled(folder: Path, form: str) -> tuple[str, np.ndarray]:
    """The samples as another tool stores them: the data block of a campaign, and their labels."""
    with np.load(folder / "data.npz") as data:
        y, images = data["labels"].astype(int), [png(x) for x in data["images"]]
    holding = [[NAMES[label] for label in np.flatnonzero(row)] for row in y]
    if form in ("columns.csv", "lists.jsonl"):
        (folder / "images/test").mkdir(parents=True)
        for row, content in enumerate(images):
            (folder / f"images/test/{row:02d}.png").write_bytes(content)
        rows = [f"{row:02d}.png,{','.join(map(str, flags))}" for row, flags in enumerate(y)]
        if form == "lists.jsonl":
            rows = [json.dumps({"file_name": f"{row:02d}.png", "labels": labels}) for row, labels in enumerate(holding)]
        else:
            rows.insert(0, "file_name," + ",".join(NAMES))
        (folder / f"images/test/metadata{Path(form).suffix}").write_text("\n".join(rows))
        return "name: image-folder, root: images, channels: 1", y
    column: list[Any] = {"parquet-flags": y.tolist(), "parquet-texts": holding}.get(
        form, [np.flatnonzero(row).tolist() for row in y]
    )
    table = arrow.table({"image": [{"bytes": content, "path": None} for content in images], "labels": column})
    features = {"labels": {"feature": {"names": list(NAMES), "_type": "ClassLabel"}, "_type": "Sequence"}}
    if form == "arrow":
        (folder / "saved").mkdir()
        with arrow.OSFile(str(folder / "saved/data-0.arrow"), "wb") as sink, arrow.ipc.new_stream(sink, table.schema) as out:
            out.write_table(table)
        (folder / "saved/dataset_info.json").write_text(json.dumps({"features": features}))
        return "name: stored, file: saved, channels: 1", y
    if form == "parquet-numbers":
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, folder / "data.parquet")
    return "name: stored, file: data.parquet, channels: 1", y


@pytest.mark.parametrize("form", FORMS)
def test_as_other_tools_store_them(tmp_path: Path, form: str) -> None:
    written(tmp_path)
    data, y = tabled(tmp_path, form)
    asked = dict(part.split(": ") for part in data.split(", "))
    given = {key: tmp_path / value for key, value in asked.items() if key in ("file", "root")} | {"channels": 1}
    label: int | str = 1 if form == "parquet-flags" else "dog"
    found = load_splits(asked["name"], given, SplitParams(success={"label": label}))
    assert found.test.labels[np.argsort(found.test_index)].tolist() == y[:, 1].tolist()
    assert found.classes == (f"not {label}", str(label))


@pytest.mark.parametrize("form", ["parquet-numbers", "lists.jsonl"])
def test_a_campaign_of_them(tmp_path: Path, form: str) -> None:
    """Pixels are rounded to bytes, which the linear network's labels do not feel; what withstands is exact again."""
    written(tmp_path)
    data, y = tabled(tmp_path, form)
    order = np.argsort(NAMES) if form == "lists.jsonl" else np.arange(4)  # texts are in the alphabet's order
    text = FILE.replace("name: npz, file: data.npz, success: any", f"{data}, success: {{label: dog}}").replace(
        "m.py:build", "o.py:build"
    )
    for part in ('  soft: {kind: external, code: "o.py:build", kwargs: {soft: true}}\n', "  fab: {kind: fab}\n"):
        text = text.replace(part, "")
    text = text.replace("{level: standard, samples: 8}", "none")
    (tmp_path / "o.py").write_text(MODEL.replace(str(WEIGHTS.tolist()), str(WEIGHTS[order].tolist())))
    (tmp_path / "c.yaml").write_text(text)
    results = robustkd.run(tmp_path / "c.yaml", tmp_path / "out", device="cpu", workers=0)
    x = (
        np.stack([np.asarray(Image.open(io.BytesIO(png(x)))) for x in np.load(tmp_path / "data.npz")["images"]]).reshape(40, -1)
        / 255
    )
    for cell in results.cells:
        assert cell.clean_accuracy == ((x @ WEIGHTS[1] > 0) == y[:, 1]).mean()
        assert cell.robust_accuracy == withstood(x, y)[:, 1].mean()


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
