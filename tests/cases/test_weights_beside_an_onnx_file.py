"""A network in an ONNX file whose weights lie beside it, as torch's exporter writes them by default: they change, or are missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import robustkd
from robustkd import plugins
from robustkd.cli import cli
from robustkd.contracts import RobustkdError, TargetError
from robustkd.data import SplitParams, load_splits
from robustkd.plugins.onnx_files import onnx_files
from support.campaigns import tiny_campaign

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

CAMPAIGN = tiny_campaign(
    "outside",
    {"mine": "{kind: external, file: net.onnx}"},
    {"square": "{kind: square, queries: 10}"},
    train=None,
    test=40,
    eps=0.01,
)


def write(weight: np.ndarray, *, hard: bool = False) -> None:
    """A linear network whose ``weight``, (64, 10), lies in net.bin; a hard one answers with one-hot rows, so it has no gradients."""
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    images = helper.make_tensor_value_info("images", number, ["batch", 1, 8, 8])
    answer = helper.make_tensor_value_info("answer", number, ["batch", 10])
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["logits"]),
        helper.make_node("Hardmax" if hard else "Identity", ["logits"], ["answer"]),
    ]
    weights = onnx.numpy_helper.from_array(weight.astype(np.float32), "weight")
    graph = helper.make_graph(nodes, "linear", [images], [answer], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    Path("net.bin").unlink(missing_ok=True)  # onnx adds to it
    onnx.save_model(model, "net.onnx", save_as_external_data=True, location="net.bin", size_threshold=0)


@pytest.fixture(scope="module")
def weight() -> np.ndarray:
    """(64, 10): of a linear network that knows digits, by the means of its classes."""
    train = load_splits("digits", {}, SplitParams(train=500, test=40)).train
    x, labels = train.unit().reshape(-1, 64), np.asarray(train.labels)
    means = np.stack([x[labels == label].mean(0) for label in range(10)], axis=1)
    return means / np.linalg.norm(means, axis=0)


def robust_accuracy() -> float:
    done = CliRunner().invoke(cli, ["run", "outside.yaml", "--no-track", "--workers", "0", "--quiet"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return float(json.loads(Path("runs/outside/results.json").read_text())["defenses"][0]["robust_accuracy"])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("outside.yaml").write_text(CAMPAIGN)


@pytest.mark.parametrize("hard", [False, True])
def test_other_weights_are_another_network(hard: bool, weight: np.ndarray) -> None:
    write(weight, hard=hard)
    before = Path("net.onnx").read_bytes()
    assert robust_accuracy() > 0.6
    write(np.zeros_like(weight), hard=hard)
    assert Path("net.onnx").read_bytes() == before
    assert robust_accuracy() < 0.4


def test_they_are_missing(weight: np.ndarray) -> None:
    write(weight)
    Path("net.bin").unlink()
    with pytest.raises(TargetError, match=r"net\.onnx keeps weights in net\.bin, which is missing"):
        robustkd.load_model("net.onnx")
    done = CliRunner().invoke(cli, ["plan", "outside.yaml"])
    assert isinstance(done.exception, RobustkdError)
    assert "net.bin cannot be read" in str(done.exception)


@pytest.mark.parametrize("kind", ["onnx-classifier", "onnx-detector"])
def test_a_judge_reads_them_too(kind: str, weight: np.ndarray) -> None:
    write(weight)
    judge = plugins.make("judges", {"kind": kind, "file": "net.onnx", "classes": ["a", "b"]})
    assert [file.name for file in judge.files()] == ["net.onnx", "net.bin"]


def test_nothing_outside_of_its_folder_is_read(weight: np.ndarray) -> None:
    write(weight)
    Path("net.onnx").write_bytes(Path("net.onnx").read_bytes().replace(b"net.bin", b"../abcd"))
    assert onnx_files(Path("net.onnx")) == [Path("net.onnx")]
