"""CLIP models in folders of transformers: the image tower behind its processor, and the vectors of class texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustkd.contracts import PluginError, TargetError
from robustkd.contracts.extras import installation
from robustkd.contracts.json_value import JsonObject
from robustkd.targets.clip_images import ClipImages
from robustkd.targets.model_files import processor_of
from robustkd.targets.pretrained import pretrained_network, pretrained_tokenizer
from robustkd.targets.two_tower import ImageTower, TwoTowerTarget


def open_clip_folder(
    folder: Path, texts: Sequence[Sequence[str]], input_shape: Sequence[int], classes: Sequence[str]
) -> TwoTowerTarget:
    """The two towers in a folder that ``CLIPModel.save_pretrained`` wrote, with its processor and tokenizer.

    Args:
        folder: with config.json, safetensors, preprocessor_config.json and the tokenizer's files.
        texts: of each class one or several, whose vectors are averaged.
        input_shape: (3, H, W) of the images that are given.
        classes: their names.

    Raises:
        TargetError: there is no such folder, it holds another model, its processor is missing, or it takes other images.
        PluginError: transformers is not installed.
    """
    try:
        from transformers import AutoTokenizer, CLIPModel
    except ImportError as error:
        raise PluginError(f"{folder} is a model of transformers", fix=installation("llm")) from error
    if not (folder / "config.json").is_file():
        raise TargetError(
            f"{folder} holds no config.json, so it is no folder of transformers",
            fix="write one: CLIPModel.from_pretrained(NAME).save_pretrained(FOLDER), and the processor's likewise",
        )
    processor = processor_of(folder)
    network = pretrained_network(CLIPModel, folder, use_safetensors=True).eval()
    channels = network.config.vision_config.num_channels
    if len(input_shape) != 3 or input_shape[0] != channels:
        raise TargetError(
            f"{folder} takes images of {channels} channels, the data's have {input_shape[0]}",
            fix="give it data of as many channels",
        )
    tokenizer = pretrained_tokenizer(AutoTokenizer, folder)
    with torch.no_grad():
        vectors = torch.stack([_mean_direction(network, tokenizer, list(some)) for some in texts])
    config = network.config.vision_config.to_dict() | {"projection_dim": network.config.projection_dim}
    tower = ImageTower(vision=_plain(config), processor=processor)
    image = tower.build()
    assert isinstance(image, ClipImages)
    parts = {"vision_model": network.vision_model, "visual_projection": network.visual_projection}
    for name, part in parts.items():
        image.network.get_submodule(name).load_state_dict(part.state_dict())
    target = TwoTowerTarget(
        image,
        vectors,
        tower=tower,
        input_shape=input_shape,
        scale=float(network.logit_scale.detach().exp()),
        classes=classes,
    )
    target.module.eval()
    return target


def _mean_direction(network: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    found = network.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    vectors: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return nn.functional.normalize(nn.functional.normalize(vectors, dim=1).mean(0), dim=0)


def _plain(config: Mapping[str, Any]) -> JsonObject:
    """What of a configuration is plain JSON."""
    return {key: value for key, value in config.items() if isinstance(value, str | int | float | bool | None)}
