"""A campaign on pictures takes a classifier from elsewhere as its judge and for FID; only one that it trained itself could be that."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from robustkd import plugins
from robustkd.contracts import FitContext, GenerativeTarget, Request, RobustkdError, ThreatModel
from robustkd.targets.model_files import open_model
from support.command_line import CommandLine
from support.model_folders import stable_diffusion

CAMPAIGN = """\
version: 1
name: styles
data: {name: prompt-csv, forbidden: {van gogh: requests.csv}, benign: {monet: benign.csv}, images: {monet: real}, size: 16}
threat: {attempts: 2}
judges: {style: {kind: concept-classifier, classifier: style, classes: [monet, van gogh, none]}}
defenses:
  model: {kind: text-to-image, folder: model, steps: 2}
  style: {kind: external-classifier, file: style, input_shape: [3, 8, 8], num_classes: 3}
attacks: {no-attack: {kind: no-attack}, random-tokens: {kind: random-tokens, tokens: 2}}
analyses: {fid: {kind: fid, network: style, layer: NAME, defenses: [model]}}
matrix: {exclude: [{defense: style}]}
checks: none
"""


@pytest.fixture
def style(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ViT of styles in a folder of transformers, beside a drawing model, requests and real pictures."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **sizes)).save_pretrained("style")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained("style")
    stable_diffusion(tmp_path / "model")
    Path("requests.csv").write_text("prompt,evaluation_seed\na b,1\nb c,2\nc d,3\n")
    Path("benign.csv").write_text("prompt,evaluation_seed\nx,4\ny z,5\n")
    Path("real").mkdir()
    for case in range(2):
        pixels = np.random.default_rng(case).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"real/{case}.png")
    return tmp_path / "style"


def test_it_says_what_is_drawn(robustkd: CommandLine, style: Path) -> None:
    layer = next(name for name, part in open_model(style).named_modules() if name.endswith("layernorm"))
    Path("c.yaml").write_text(CAMPAIGN.replace("NAME", layer))
    code, _, err = robustkd("run", "c.yaml", "--workers", "0", "--no-track", "--quiet", "--out", "out")
    assert code == 0, err
    results = json.loads(Path("out/results.json").read_text())
    (found,) = [row for row in results["defenses"] if row["defense"] == "model"]
    assert (found["n"], found["status"]) == (3, "done")
    assert 0 < found["analyses"]["fid"]["metrics"]["fid"] < np.inf
    # Each picture's likeliest style, by transformers itself.
    network = ViTForImageClassification.from_pretrained(style).eval()
    drawn = loaded(style.parent / "model").respond(
        [Request(prompt, seed=seed) for prompt, seed in (("a b", 1), ("b c", 2), ("c d", 3))]
    )
    pixels = F.interpolate(torch.stack(drawn), size=(8, 8), mode="bilinear", antialias=True).clamp(0, 1)
    with torch.no_grad():
        shown = network((pixels - 0.5) / 0.5).logits.argmax(1) == 1
    (cell,) = [cell for cell in results["cells"] if cell["attack"] == "no-attack"]
    assert cell["robust_accuracy"] == pytest.approx(1 - float(shown.float().mean()))


def loaded(folder: Path) -> GenerativeTarget:
    context = FitContext(None, None, (), 2, ThreatModel.by_prompt(1), 0, torch.device("cpu"), folder)
    target = plugins.make("defenses", {"kind": "text-to-image", "folder": folder, "steps": 2}).fit(context)
    assert isinstance(target, GenerativeTarget)
    return target


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "say what images"),
        ({"num_classes": 3, "classes": [1, 2], "restrict": True}, "the judge says"),
    ],
)
def test_what_the_data_do_not_say_is_asked_for(style: Path, params: dict[str, object], said: str) -> None:
    with pytest.raises(RobustkdError, match=said):
        plugins.make("defenses", {"kind": "external-classifier", "file": str(style), "input_shape": [3, 8, 8], **params})
