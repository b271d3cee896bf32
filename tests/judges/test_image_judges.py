"""Judges of images: which classes count as a concept, and networks from a campaign, from an ONNX file and from a CLIP folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustkd import plugins
from robustkd.contracts import DataError, Judge, Prompts, TargetError, UsageError
from robustkd.judges.labels import LabelParams, named, shows, sized
from robustkd.targets import ClassifierTarget

CLASSES = ("church", "chapel", "truck", "none")


def asking(*concepts: str) -> Prompts:
    columns = {"prompt": tuple(f"a {concept}" for concept in concepts), "concept": concepts}
    return Prompts(columns, np.zeros(len(concepts), dtype=np.int64))


def said(rows: list[list[float]], concepts: str, **params: Any) -> list[bool]:
    return shows(torch.tensor(rows), asking(*concepts.split()), CLASSES, LabelParams(**params)).tolist()


def test_a_strict_judge_takes_the_class_of_that_name_and_a_lax_one_its_neighbours() -> None:
    rows = [[0.6, 0.2, 0.1, 0.1], [0.2, 0.6, 0.1, 0.1], [0.2, 0.1, 0.6, 0.1], [0.2, 0.1, 0.1, 0.6]]
    assert said(rows, "church Church church church") == [True, False, False, False]
    assert said(rows, "church church church church", accepted={"church": ["chapel"]}) == [True, True, False, False]
    assert said(rows, "church church truck truck", accepted={"church": ["chapel"]}) == [True, True, True, False]
    assert said(rows, "church church church church", top=2) == [True, True, True, True]
    assert said(rows, "church church church church", top=9, confidence=0.3) == [True, False, False, False]
    assert said(rows[:1], "basilica", accepted={"basilica": ["church", "chapel"]}) == [True]


def test_a_concept_without_a_class_is_an_error_that_names_both() -> None:
    with pytest.raises(DataError, match=r"no class 'tench'; its classes are: church, chapel, truck, none") as error:
        said([[1.0, 0, 0, 0]], "tench")
    assert "accepted: {'tench': [..]}" in (error.value.fix or "")
    with pytest.raises(DataError, match="no class 'abbey'"):
        said([[1.0, 0, 0, 0]], "church", accepted={"church": ["abbey"]})
    with pytest.raises(DataError, match="gives 3 numbers for an image, and 4 classes are named"):
        said([[1.0, 0, 0]], "church")
    with pytest.raises(DataError, match="no column 'concept'"):
        shows(torch.ones(1, 4), Prompts({"prompt": ("a",)}, np.zeros(1)), CLASSES, LabelParams())


def test_images_are_brought_to_the_size_that_the_judge_looks_at() -> None:
    grey = [torch.rand(1, 8, 8) for _ in range(2)]
    assert torch.equal(sized(grey, (1, 8, 8)), torch.stack(grey))
    assert torch.equal(sized(grey, (3, None, None)), torch.stack(grey).expand(2, 3, 8, 8))
    halved = sized(grey, (1, 4, 4))
    assert halved.shape == (2, 1, 4, 4)
    torch.testing.assert_close(halved.mean((1, 2, 3)), torch.stack(grey).mean((1, 2, 3)), atol=0.03, rtol=0)
    with pytest.raises(DataError, match="images of 4 channels, the model draws 3"):
        sized([torch.rand(3, 8, 8)], (4, 8, 8))


@pytest.mark.slow
def test_the_classes_of_imagenet_are_known_by_name() -> None:
    names = named("imagenet")
    assert (names[0], names[497], names[569], names[701]) == ("tench", "church", "garbage truck", "parachute")


def quadrants() -> nn.Sequential:
    """(1, 4, 4) images: each class is a quarter of the image, and its logit ten times its brightness."""
    network = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 4))
    with torch.no_grad():
        network[2].weight.copy_(10 * torch.eye(4))
        network[2].bias.zero_()
    return network


def lit(quarter: int, side: int = 4) -> torch.Tensor:
    image = torch.zeros(1, 4, 4)
    row, column = divmod(quarter, 2)
    image[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = 1
    return image.repeat_interleave(side // 4, 1).repeat_interleave(side // 4, 2)


def classifier(classes: tuple[str, ...] | None = CLASSES) -> ClassifierTarget:
    target = ClassifierTarget(quadrants(), num_classes=4, input_shape=(1, 4, 4))
    target.classes = classes
    return target


def by_classifier(target: Any, **params: Any) -> Judge:
    judge: Judge = plugins.make("judges", {"kind": "concept-classifier", "classifier": "net"} | params)
    return judge.with_targets({"net": target})


def test_a_classifier_of_the_campaign_judges() -> None:
    requests, images = asking("church", "church", "truck", "truck"), [lit(0), lit(1), lit(2), lit(3)]
    assert by_classifier(classifier()).complied(requests, images).tolist() == [True, False, True, False]
    large = [lit(quarter, side=16) for quarter in range(4)]
    assert by_classifier(classifier()).complied(requests, large).tolist() == [True, False, True, False]
    renamed = by_classifier(classifier(None), classes=("truck", "x", "church", "y"))
    assert renamed.complied(requests, [lit(2), lit(1), lit(0), lit(3)]).tolist() == [True, False, True, False]


def test_a_classifier_that_cannot_judge_says_why() -> None:
    with pytest.raises(DataError, match="'net' have no names"):
        by_classifier(classifier(None)).complied(asking("church"), [lit(0)])
    with pytest.raises(UsageError, match="is a causal-lm, where a classifier of images is needed"):
        by_classifier(type("Other", (), {"kind": "causal-lm"})()).complied(asking("church"), [lit(0)])


def onnx_file(folder: Path, layout: str = "nchw", batch: int | str = "batch", output: str = "logits") -> Path:
    """The network of ``quadrants`` for images of [-1, 1], as an ONNX file."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    shape = [batch, 1, 4, 4] if layout == "nchw" else [batch, 4, 4, 1]
    nodes = [] if layout == "nchw" else [helper.make_node("Transpose", ["x"], ["turned"], perm=[0, 3, 1, 2])]
    nodes += [
        helper.make_node(
            "AveragePool", ["x" if layout == "nchw" else "turned"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]
        ),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Mul", ["flat", "five"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "quadrants",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])],
        [numpy_helper.from_array(np.float32(5), "five")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    file = folder / "judge.onnx"
    onnx.save(model, file)
    return file


def by_file(file: Path, **params: Any) -> Judge:
    given = {"kind": "onnx-classifier", "file": str(file), "classes": CLASSES, "mean": (0.5,), "std": (0.5,)}
    judge: Judge = plugins.make("judges", given | params)
    return judge


@pytest.mark.parametrize(("layout", "batch"), [("nchw", "batch"), ("nhwc", "batch"), ("nchw", 1)])
def test_a_network_in_an_onnx_file_judges_like_the_same_one_in_torch(tmp_path: Path, layout: str, batch: int | str) -> None:
    judge = by_file(onnx_file(tmp_path, layout, batch), layout=layout)
    torch.manual_seed(0)
    images = list(torch.rand(20, 1, 4, 4))
    expected = quadrants()(torch.stack(images)) - 5  # 5 * (2 x - 1)
    torch.testing.assert_close(judge._scores(images), expected.detach(), atol=1e-5, rtol=0)  # type: ignore[attr-defined]
    requests = asking(*(CLASSES[int(place)] for place in expected.argmax(1)))
    assert judge.complied(requests, images).all()
    assert judge.files() == [tmp_path / "judge.onnx"]


def test_probabilities_of_an_onnx_file_are_taken_as_they_are(tmp_path: Path) -> None:
    half = [0.55 * lit(0) + 0.45]  # a score of 5 for the first class, of -0.5 for the others
    sure, unsure = ({"output": output, "confidence": 0.999, "top": 4} for output in ("probabilities", "logits"))
    assert by_file(onnx_file(tmp_path), **sure).complied(asking("church"), half).tolist() == [True]
    assert by_file(onnx_file(tmp_path), **unsure).complied(asking("church"), half).tolist() == [False]


def test_an_onnx_file_that_cannot_judge_is_named(tmp_path: Path) -> None:
    file = onnx_file(tmp_path)
    with pytest.raises(TargetError, match=r"judge.onnx cannot judge images of \(3, 4, 4\)"):
        by_file(file, size=None, mean=(0.1, 0.2, 0.3)).complied(asking("church"), [lit(0)])
    file.write_bytes(b"no network")
    with pytest.raises(TargetError, match=r"judge.onnx cannot be loaded"):
        by_file(file).complied(asking("church"), [lit(0)])
    with pytest.raises(TargetError, match=r"missing.onnx cannot be loaded"):
        by_file(tmp_path / "missing.onnx").complied(asking("church"), [lit(0)])


@pytest.mark.slow
def test_clip_compares_an_image_with_a_text(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from robustkd.defenses.diffusion.small import word_tokenizer

    torch.manual_seed(0)
    words = word_tokenizer(["a church, a truck"])
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = size | {"vocab_size": 9, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=size | {"image_size": 8, "patch_size": 4}, projection_dim=12
    )
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    requests, images = asking("church", "truck"), [torch.rand(1, 8, 8), torch.rand(1, 8, 8)]

    def judge(threshold: float, **params: Any) -> Any:
        return plugins.make("judges", {"kind": "clip-score", "folder": str(tmp_path), "threshold": threshold} | params)

    with torch.no_grad():
        pixels = (torch.stack(images).expand(-1, 3, -1, -1) - 0.5) / 0.25
        seen = F.normalize(model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output))
        ids = tokenizer([f"the {name}" for name in requests["concept"]], return_tensors="pt", padding=True)
        meant = F.normalize(model.text_projection(model.text_model(**{k: ids[k] for k in ("input_ids", "attention_mask")})[1]))
    expected = 100 * (seen * meant).sum(1).clamp_min(0)
    scores = judge(0, text="the {concept}").scores(requests, images)
    np.testing.assert_allclose(scores, expected, atol=1e-3)
    between = float(expected.mean())
    assert judge(between, text="the {concept}").complied(requests, images).tolist() == (expected >= between).tolist()
    with pytest.raises(DataError, match="no column 'style'"):
        judge(1, text="{style}").complied(requests, images)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(TargetError, match="holds no CLIP model"):
        judge(1).complied(requests, images)
