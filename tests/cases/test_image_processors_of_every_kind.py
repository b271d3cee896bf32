"""A folder of transformers: its network is given the pixels that transformers gives it, or the folder is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import robustkd
from robustkd.contracts import TargetError
from robustkd.targets.image_processors import _CLASSES

transformers = pytest.importorskip("transformers")
CONSTANTS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    shape = {"image_size": 32, "patch_size": 16, "hidden_size": 8, "intermediate_size": 8}
    config = transformers.ViTConfig(**shape, num_hidden_layers=1, num_attention_heads=1)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "processor",
    [
        {
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": 32},
            "crop_pct": 0.7,
            "resample": 3,
            **CONSTANTS,
        },
        {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 32, "crop_pct": 0.7, "resample": 3, **CONSTANTS},
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32},
        {"image_processor_type": "CLIPImageProcessorFast", "size": 24, "crop_size": {"height": 32, "width": 32}},
        {"size": 32, "do_normalize": False},
        *({"image_processor_type": name} for name in _CLASSES),
    ],
    ids=str,
)
def test_the_network_is_given_what_transformers_gives_it(network: Path, processor: dict[str, Any]) -> None:
    (network / "preprocessor_config.json").write_text(json.dumps(processor))
    reads = transformers.AutoImageProcessor.from_pretrained(network)
    opened = robustkd.load_model(network)
    blobs = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 6, 3), dtype=np.uint8))
    for size in ((40, 40), (53, 41)):
        image = blobs.resize(size, Image.Resampling.BICUBIC)
        wanted = reads(images=image, return_tensors="pt")["pixel_values"]
        found = opened.pixels(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255)
        assert found.shape == wanted.shape
        assert (found - wanted).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("processor", "said"),
    [
        ({"image_processor_type": "MobileViTImageProcessor", "size": 32}, "is a MobileViTImageProcessor"),
        ({"feature_extractor_type": "LevitFeatureExtractor", "size": 32}, "is a LevitImageProcessor"),
        ({"image_processor_type": "ViTImageProcessor", "do_flip_channel_order": True}, "do_flip_channel_order: True"),
        ({"image_processor_type": "ViTImageProcessor", "crop_pct": 0.9}, "crop_pct: 0.9"),
        ({"image_processor_type": "ViTImageProcessor", "do_rescale": False}, "do_rescale: False"),
        ({"image_processor_type": "ViTImageProcessor", "resample": 0}, "resample: 0"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 32}}, "size: {'longest_edge': 32}"),
    ],
    ids=str,
)
def test_what_is_not_known_to_be_done_is_refused(network: Path, processor: dict[str, Any], said: str) -> None:
    (network / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(TargetError) as refused:
        robustkd.load_model(network)
    assert said in refused.value.message
    assert "pixels in [0, 1]" in str(refused.value.fix)
