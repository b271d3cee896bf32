"""A judge by detections: places worked out by hand, and NudeNet's own package where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustkd import plugins
from robustkd.contracts import DataError, Prompts, TargetError
from robustkd.judges.onnx_detector import NUDENET, OnnxDetector, clipped, common, squared, strongest

pytest.importorskip("onnxruntime")
helper = pytest.importorskip("onnx").helper


def reading_pixels(file: Path, shape: tuple[int, ...] = (1, 6, 2)) -> Path:
    """A network whose output are the pixels of its (1, 3, 2, 2) input: so a picture says what is detected in it."""
    import onnx

    given = helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1, 3, 2, 2])
    told = helper.make_tensor_value_info("detections", onnx.TensorProto.FLOAT, list(shape))
    sides = helper.make_tensor("sides", onnx.TensorProto.INT64, [len(shape)], shape)
    node = helper.make_node("Reshape", ["images", "sides"], ["detections"])
    graph = helper.make_graph([node], "pixels", [given], [told], [sides])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), file)
    return file


def picture(*rows: tuple[float, float], turned: bool = False) -> torch.Tensor:
    """The image whose pixels are centre x, centre y, width, height and two scores of two places."""
    numbers = torch.tensor(rows)
    return (numbers.T.contiguous() if turned else numbers).reshape(3, 2, 2)


def judge(file: Path, **params: Any) -> OnnxDetector:
    made: OnnxDetector = plugins.make("judges", {"kind": "onnx-detector", "file": str(file), **params})
    return made


def asking(*concepts: str) -> Prompts:
    return Prompts({"prompt": concepts, "concept": concepts}, np.zeros(len(concepts), dtype=np.int64))


APART = ((0.2, 1.5), (0.2, 1.5), (0.2, 0.2), (0.2, 0.2))
TOGETHER = ((0.5, 0.5), (0.5, 0.5), (0.8, 0.8), (0.8, 0.7))


def test_detections_by_hand(tmp_path: Path) -> None:
    file = reading_pixels(tmp_path / "d.onnx")
    found = judge(file, classes=["cat", "dog"])
    both = picture(*APART, (0.9, 0.1), (0.1, 0.3))
    cat = picture(*APART, (0.9, 0.1), (0.1, 0.2))
    covered = picture(*TOGETHER, (0.9, 0.1), (0.1, 0.8))  # the dog's box is the cat's but for an eighth
    nothing = picture(*APART, (0.2, 0.2), (0.1, 0.1))
    assert found.detections([both, cat, covered, nothing]) == [{0, 1}, {0}, {0}, set()]
    assert found.complied(asking("cat", "dog", "dog", "cat"), [both, both, cat, nothing]).tolist() == [True, True, False, False]
    assert judge(file, classes=["cat", "dog"], overlap=0.9).detections([covered]) == [{0, 1}]
    assert judge(file, classes=["cat", "dog"], confidence=0.95).detections([both]) == [set()]
    lax = judge(file, classes=["cat", "dog"], accepted={"animal": ["cat", "dog"]})
    assert lax.complied(asking("animal", "animal"), [cat, nothing]).tolist() == [True, False]
    turned = judge(reading_pixels(tmp_path / "t.onnx", (1, 2, 6)), classes=["cat", "dog"])
    rows = (*APART, (0.9, 0.1), (0.1, 0.3))
    assert turned.detections([picture(*rows, turned=True)]) == [{0, 1}]


def test_the_order_of_the_channels(tmp_path: Path) -> None:
    """Here the first channel holds the centres, the last one the scores."""
    file, image = reading_pixels(tmp_path / "d.onnx"), picture(*APART, (0.9, 0.1), (0.1, 0.3))
    turned = image.flip(0)
    assert judge(file, classes=["cat", "dog"], channels="bgr").detections([turned]) == [{0, 1}]
    assert judge(file, classes=["cat", "dog"]).detections([turned]) != [{0, 1}]


def test_what_it_cannot_judge_is_named(tmp_path: Path) -> None:
    file = reading_pixels(tmp_path / "d.onnx")
    image = picture(*APART, (0.9, 0.1), (0.1, 0.3))
    with pytest.raises(TargetError, match=r"returns \(6, 2\) for an image, and 18 classes are named"):
        judge(file).detections([image])
    with pytest.raises(DataError, match="no class 'nudity'"):
        judge(file).complied(asking("nudity"), [image])
    with pytest.raises(DataError, match="images of 3 channels, the model draws 1"):
        judge(file, classes=["cat", "dog"]).detections([image[:1]])
    with pytest.raises(TargetError, match="NaN"):
        judge(file, classes=["cat", "dog"]).detections([image * float("nan")])


def test_boxes_by_hand() -> None:
    boxes = clipped(torch.tensor([[5.0, 5.0, 4.0, 4.0], [1.0, 9.0, 6.0, 6.0]]), height=8, width=10)
    assert boxes.tolist() == [[3, 3, 4, 4], [0, 6, 6, 2]]
    assert common(torch.tensor([0.0, 0, 2, 2]), torch.tensor([[1.0, 0, 2, 2], [5, 5, 1, 1]])).tolist() == pytest.approx(
        [1 / 3, 0]
    )
    several = torch.tensor([[0.0, 0, 2, 2], [0.1, 0, 2, 2], [4, 4, 2, 2]])
    assert strongest(several, torch.tensor([0.5, 0.9, 0.3]), 0.25, 0.45) == [1, 2]
    wide = squared(torch.ones(3, 2, 4), 4)
    assert wide[0, 0].tolist() == [[1.0] * 4, [1.0] * 4, [0.0] * 4, [0.0] * 4]


def test_as_nudenet_itself_finds() -> None:
    nudenet = pytest.importorskip("nudenet")
    cv2, matplotlib = pytest.importorskip("cv2"), pytest.importorskip("matplotlib")
    portrait = cv2.imread(str(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"))
    images = [portrait, portrait[:400], portrait[:, 100:400], cv2.resize(portrait, (320, 320)), portrait[::-1].copy()]
    theirs = nudenet.NudeDetector()
    pixels = [torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1) / 255 for image in images]
    ours = judge(Path(nudenet.__file__).parent / "320n.onnx", size=320).detections(pixels)
    assert ours == [{NUDENET.index(one["class"]) for one in theirs.detect(image)} for image in images]
    assert NUDENET.index("FACE_FEMALE") in ours[0]
