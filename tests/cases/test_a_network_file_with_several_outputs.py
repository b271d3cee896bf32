"""A network file that returns features beside its logits: the first output was taken, whatever it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import robustkd
from robustkd.data import SplitParams, load_splits


class TwoHeads(nn.Module):
    """Features, and logits that know digits by the means of their classes."""

    def __init__(self, means: torch.Tensor) -> None:
        super().__init__()
        self.features, self.head = nn.Linear(64, 10), nn.Linear(64, 10)
        nn.init.zeros_(self.features.weight)
        self.head.weight.data.copy_(means)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 1, 8, 8) -> two of (B, 10)."""
        flat = x.flatten(1)
        return {"features": self.features(flat), "logits": self.head(flat)}


@pytest.fixture(scope="module")
def digits() -> tuple[TwoHeads, np.ndarray, np.ndarray]:
    """The network, and 45 test images with their labels."""
    splits = load_splits("digits", {}, SplitParams(train=500, test=45))
    x, labels = splits.train.unit().reshape(-1, 64), np.asarray(splits.train.labels)
    means = np.stack([x[labels == label].mean(0) for label in range(10)])
    network = TwoHeads(torch.from_numpy(means / np.linalg.norm(means, axis=1, keepdims=True)).float()).eval()
    return network, splits.test.unit(), np.asarray(splits.test.labels)


def attacked(model: nn.Module | str, x: np.ndarray, y: np.ndarray, kind: str, **params: int) -> tuple[float, float]:
    network = robustkd.load_model(model) if isinstance(model, str) else model
    found = robustkd.attack(kind, network, x, y, eps=0.2, **params)
    return found.clean_accuracy, found.robust_accuracy


def onnx_file(network: TwoHeads, outputs: list[str], *, hard: bool = False, batch: int | str = "batch") -> str:
    """An ONNX file that returns these of the network's two outputs in this order; a hard one without gradients."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [helper.make_node("Flatten", ["images"], ["flat"])]
    weights = []
    for name, layer in (("features", network.features), ("logits", network.head)):
        weights.append(onnx.numpy_helper.from_array(layer.weight.detach().numpy().T.copy(), f"{name} weight"))
        nodes.append(helper.make_node("Gemm", ["flat", f"{name} weight"], [f"{name} soft"]))
        nodes.append(helper.make_node("Hardmax" if hard else "Identity", [f"{name} soft"], [name]))
    images = helper.make_tensor_value_info("images", number, [batch, 1, 8, 8])
    answers = [helper.make_tensor_value_info(name, number, [batch, 10]) for name in outputs]
    model = helper.make_model(
        helper.make_graph(nodes, "two", [images], answers, weights), opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    )
    onnx.save_model(model, "net.onnx")
    return "net.onnx"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("batch", ["batch", 8])
@pytest.mark.parametrize("order", [["features", "logits"], ["logits", "features"]])
def test_the_logits_of_an_onnx_file_are_found_by_their_name(digits, order, batch):
    network, *data = digits
    alone = attacked(network, *data, "pgd", steps=5)
    assert alone[0] > 0.8 > alone[1]
    pytest.importorskip("onnx2pytorch")
    assert attacked(onnx_file(network, order, batch=batch), *data, "pgd", steps=5) == pytest.approx(alone, abs=0.03)


@pytest.mark.parametrize("batch", ["batch", 8])
def test_those_of_a_file_without_gradients_too(digits, batch):
    network, *data = digits
    both = attacked(onnx_file(network, ["features", "logits"], hard=True, batch=batch), *data, "square", queries=10)
    assert both == attacked(onnx_file(network, ["logits"], hard=True, batch=batch), *data, "square", queries=10)
    assert both[0] > 0.8


def test_an_exported_program_for_batches_of_one_size(digits):
    network, *data = digits
    torch.export.save(torch.export.export(network, (torch.zeros(8, 1, 8, 8),)), "net.pt2")
    assert attacked("net.pt2", *data, "pgd", steps=5) == pytest.approx(attacked(network, *data, "pgd", steps=5), abs=0.03)
