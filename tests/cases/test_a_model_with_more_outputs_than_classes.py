"""A model of ten classes, evaluated on data that hold three of them: ImageNet's models on a subset, CIFAR's on three classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
from sklearn.datasets import load_digits

import robustkd
from robustkd.reporting.formatting import class_name
from support.campaigns import external, tiny_campaign
from support.nearest_mean import NEAREST_MEAN

CAMPAIGN = tiny_campaign(
    "subset",
    external("FOLDER/net.py:build", "linear", num_classes=10),
    {"pgd": "{kind: pgd, steps: 5}"},
    data="{name: npz, file: FILE}",
    eps=0.3,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images, labels = load_digits(return_X_y=True)
    rows = np.flatnonzero(labels < 3)[:60]
    np.savez(tmp_path / "three.npz", images=(images[rows] / 16).astype(np.float32).reshape(-1, 1, 8, 8), labels=labels[rows])
    (tmp_path / "net.py").write_text(NEAREST_MEAN)
    text = CAMPAIGN.replace("FILE", str(tmp_path / "three.npz")).replace("FOLDER", str(tmp_path))
    (tmp_path / "subset.yaml").write_text(text)
    return tmp_path


def test_a_class_without_a_name_is_called_by_its_number():
    assert [class_name(("cat", "dog"), number) for number in (0, 1, 7)] == ["cat", "dog", "class 7"]


def test_a_campaign_with_its_report_and_its_tracking(folder: Path, say: Callable[..., tuple[int, str]]) -> None:
    out = folder / "out"
    code, told = say("run", folder / "subset.yaml", "--out", out, "--workers", 0)
    assert code == 0, told
    page = (out / "report.html").read_text()
    classes = json.loads(page.partition('id="sample-data">')[2].partition("</script>")[0])["classes"]
    assert classes[:4] == ["0", "1", "2", "class 3"]
    assert "→ class " in page  # a sample that is taken for a class that the data lack
    for command in ("report", "track"):
        code, told = say(command, folder / "subset.yaml", "--out", out)
        assert code == 0, told
        assert "IndexError" not in told
    client = mlflow.MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("subset").experiment_id])
    images = [file.path for run in found for file in client.list_artifacts(run.info.run_id, "images")]
    assert images


def test_without_num_classes_the_message_names_it(folder: Path, say: Callable[..., tuple[int, str]]) -> None:
    (folder / "subset.yaml").write_text((folder / "subset.yaml").read_text().replace(", num_classes: 10", ""))
    _, told = say("run", folder / "subset.yaml", "--out", folder / "out", "--no-track", "--workers", 0)
    assert "expected (2, 3)" in told
    assert "num_classes: 10" in told


def test_the_commands_take_the_number_of_outputs_from_the_model(folder: Path, say: Callable[..., tuple[int, str]]) -> None:
    given = ("--data", "npz", "--data-set", f"file={folder / 'three.npz'}", "--eps", "0.3")
    code, attacked = say("attack", "pgd", "--model", f"{folder / 'net.py'}:build", *given, "--json")
    assert code == 0, attacked
    code, audited = say("audit", f"{folder / 'net.py'}:build", *given, "--samples", 4, "--attack", "pgd", "--json")
    assert code in (0, 4), audited
    archive = np.load(folder / "three.npz")
    namespace: dict[str, object] = {}
    exec(NEAREST_MEAN, namespace)
    alone = robustkd.attack("pgd", namespace["build"](), archive["images"], archive["labels"], eps=0.3)
    assert json.loads(attacked)["robust_accuracy"] == alone.robust_accuracy
    assert json.loads(audited)["attacks"] == {"pgd": alone.robust_accuracy}
