"""Classifiers that a file or a folder holds whole: TorchScript, torch.export, ONNX, and image classifiers of transformers.

A TorchScript or exported file is a program, see docs/security.md: it is opened where a user names it, never because a card does.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustkd.contracts import PluginError, TargetError
from robustkd.normalisation.layer import Normalise
from robustkd.targets.image_processors import PROCESSOR, steps_of
from robustkd.targets.onnx_files import open_onnx
from robustkd.targets.pretrained import pretrained_network
from robustkd.targets.whole import Whole

Format = Literal["torchscript", "export", "onnx", "transformers"]


def format_of(path: Path) -> Format | None:
    """What a file or folder holds, told without loading it; None of anything else, such as weights alone."""
    if path.is_dir():
        return "transformers" if (path / "config.json").is_file() else None
    if path.suffix == ".onnx":
        return "onnx"
    if not path.is_file() or not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        inside = {name.partition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
        return "torchscript"
    return "export" if "archive_format" in inside or "serialized_exported_program.json" in inside else None


def open_model(path: Path) -> nn.Module:
    """The network in a file or folder, in evaluation mode; of an ONNX file that cannot be converted, one that
    gives no gradients.

    Raises:
        TargetError: there is none, or it cannot be loaded.
        PluginError: the package that loads it is not installed.
    """
    found = format_of(path)
    if found is None:
        if not path.exists():
            raise TargetError(f"there is no model file {path}", fix="give its path from the campaign file's folder")
        raise TargetError(
            f"{path} holds no network: it is no TorchScript, torch.export or ONNX file, and no folder with a config.json",
            fix=f"if these are weights, name the code that builds the network as well: code: my_model.py:build, weights: {path.name}",
        )
    openers: dict[Format, Callable[[Path], nn.Module]] = {
        "torchscript": _torchscript,
        "export": _exported,
        "onnx": open_onnx,
        "transformers": _of_transformers,
    }
    try:
        return openers[found](path).eval()
    except (TargetError, PluginError):
        raise
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0][:200]
        raise TargetError(f"{path} cannot be loaded: {type(error).__name__}: {said}", fix="write it again") from error


class Processed(nn.Module):
    """A network of transformers behind what its processor does with the pixels, in operations with gradients.

    Images that have the size already are not resized.

    Args:
        network: what is given the pixels.
        processor: the processor's file.
        model_type: of the network, which says the processor's class where the file does not.

    Raises:
        TargetError: the processor does something else.
    """

    def __init__(self, network: nn.Module, processor: Mapping[str, Any], model_type: str) -> None:
        super().__init__()
        self.network = network
        self._steps = steps_of(processor, model_type)
        self.normalise = Normalise(*self._steps.normalise) if self._steps.normalise else nn.Identity()

    def pixels(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> what the network is given."""
        given: Tensor = self.normalise(self._resized(images))
        return given

    def _resized(self, images: Tensor) -> Tensor:
        resize, crop, mode, _ = self._steps
        height, width = images.shape[-2:]
        if resize is not None and (height, width) != crop:
            if isinstance(resize, int):  # the longer edge is cut to whole pixels, as transformers does
                shorter = min(height, width)
                resize = int(resize * height / shorter), int(resize * width / shorter)
            if resize != (height, width):
                images = F.interpolate(images, resize, mode=mode, antialias=True, align_corners=False).clamp(0, 1)
        return images if crop is None else _centre(images, crop)


def _centre(images: Tensor, crop: tuple[int, int]) -> Tensor:
    """The middle of images; those that are smaller get a black border."""
    high, wide = (max(keep - have, 0) for have, keep in zip(images.shape[-2:], crop, strict=True))
    if high or wide:
        images = F.pad(images, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
    top, left = ((have - keep) // 2 for have, keep in zip(images.shape[-2:], crop, strict=True))
    return images[..., top : top + crop[0], left : left + crop[1]]


class OfTransformers(Processed):
    """An image classifier of transformers."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K) logits."""
        logits: Tensor = self.network(self.pixels(images)).logits
        return logits


def _torchscript(file: Path) -> nn.Module:
    network: nn.Module = torch.jit.load(str(file), map_location="cpu")
    return network


def _exported(file: Path) -> nn.Module:
    program = torch.export.load(file)
    names = set(program.graph_signature.user_inputs)
    shapes = [node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(shapes) != 1:
        raise TargetError(f"{file} takes {len(shapes)} inputs", fix="export the classifier with a batch of images alone")
    return Whole(program.module(), shapes[0][0] if isinstance(shapes[0][0], int) else None)


def _of_transformers(folder: Path) -> nn.Module:
    try:
        from transformers import AutoModelForImageClassification
    except ImportError as error:
        raise PluginError(f"{folder} is a model of transformers", fix="pip install transformers") from error
    network = pretrained_network(AutoModelForImageClassification, folder, use_safetensors=True)
    return OfTransformers(network, processor_of(folder), network.config.model_type)


def processor_of(folder: Path) -> dict[str, Any]:
    """The file of the image processor saved in a folder.

    Raises:
        TargetError: there is none, or it holds no mapping.
    """
    file = folder / PROCESSOR
    if not file.is_file():
        raise TargetError(
            f"{folder} has no {PROCESSOR}, which says how its images are normalised",
            fix="save the processor there as well: AutoImageProcessor.from_pretrained(NAME).save_pretrained(FOLDER)",
        )
    found = json.loads(file.read_text())
    if not isinstance(found, dict):
        raise TargetError(f"{file} holds no mapping", fix="write it again")
    return found
