"""What an image processor of transformers does with pixels, from its ``preprocessor_config.json``.

The keys alone do not say it. Processors of different classes take different steps with the same keys, and what a file leaves out is a
default of its class. So the classes are written down here that resize, crop and normalise, and others are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from robustkd.contracts import TargetError
from robustkd.normalisation.constants import NAMED

Size = tuple[int, int]
PROCESSOR = "preprocessor_config.json"
_STANDARD = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_MODES: Mapping[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of the ways to resize that are possible with gradients and close to Pillow's own."""
_FULL_SIZE = 384
"""From this edge on a ConvNeXT processor crops nothing."""
_FIX = (
    "open the model in code of your own, as a module that takes pixels in [0, 1] and does what its processor does: "
    "code: my_model.py:build"
)


class Steps(NamedTuple):
    """What is done with pixels in [0, 1], in this order; None: nothing.

    Attributes:
        resize: to a height and a width, or the shorter edge to a number of pixels.
        crop: the height and the width that are cut out of the middle.
        mode: how is resized.
        normalise: mean and std of each channel.
    """

    resize: Size | int | None
    crop: Size | None
    mode: Literal["bilinear", "bicubic"]
    normalise: tuple[list[float], list[float]] | None


class _Class(NamedTuple):
    """The defaults of a class of processors.

    Attributes:
        size: to what it resizes: one number is the shorter edge.
        crop: the size of a crop, which is made where ``crops``.
        square: whether one number in a file's ``size`` is a square's height and width, and not the shorter edge.
    """

    size: Size | int
    resample: int
    constants: tuple[tuple[float, ...], tuple[float, ...]]
    crop: Size | None = None
    crops: bool = False
    square: bool = True


_CLASSES: Mapping[str, _Class] = {
    "BeitImageProcessor": _Class((224, 224), 3, _STANDARD, (224, 224)),
    "BitImageProcessor": _Class(224, 3, NAMED["clip"], (224, 224), crops=True, square=False),
    "BlipImageProcessor": _Class((384, 384), 3, NAMED["clip"]),
    "CLIPImageProcessor": _Class(224, 3, NAMED["clip"], (224, 224), crops=True, square=False),
    "ChineseCLIPImageProcessor": _Class(224, 3, NAMED["clip"], (224, 224), crops=True, square=False),
    "ConvNextImageProcessor": _Class(384, 3, _STANDARD, square=False),
    "DINOv3ViTImageProcessor": _Class((224, 224), 2, NAMED["imagenet"]),
    "DeiTImageProcessor": _Class((256, 256), 3, _STANDARD, (224, 224), crops=True),
    "MobileNetV1ImageProcessor": _Class(256, 2, _STANDARD, (224, 224), crops=True, square=False),
    "MobileNetV2ImageProcessor": _Class(256, 2, _STANDARD, (224, 224), crops=True, square=False),
    "PvtImageProcessor": _Class((224, 224), 3, NAMED["imagenet"]),
    "SegformerImageProcessor": _Class((512, 512), 2, NAMED["imagenet"]),
    "SiglipImageProcessor": _Class((224, 224), 3, _STANDARD, square=False),
    "ViTImageProcessor": _Class((224, 224), 2, _STANDARD),
}
_OF_MODELS: Mapping[str, str] = {
    "beit": "Beit",
    "bit": "Bit",
    "clip": "CLIP",
    "convnext": "ConvNext",
    "convnextv2": "ConvNext",
    "cvt": "ConvNext",
    "data2vec-vision": "Beit",
    "deit": "DeiT",
    "dinat": "ViT",
    "dinov2": "Bit",
    "dinov3_vit": "DINOv3ViT",
    "focalnet": "Bit",
    "hiera": "Bit",
    "ijepa": "ViT",
    "metaclip_2": "CLIP",
    "mobilenet_v1": "MobileNetV1",
    "mobilenet_v2": "MobileNetV2",
    "pvt": "Pvt",
    "pvt_v2": "Pvt",
    "regnet": "ConvNext",
    "resnet": "ConvNext",
    "segformer": "Segformer",
    "siglip": "Siglip",
    "swiftformer": "ViT",
    "swin": "ViT",
    "swinv2": "ViT",
    "vit": "ViT",
    "vit_msn": "ViT",
}
"""The processor of each ``model_type`` as transformers has it where a file, as older ones do, names none."""
_KNOWN = frozenset({"do_resize", "do_center_crop", "do_normalize", "do_rescale", "do_convert_rgb", "do_reduce_labels"})
_WITH_EFFECT = frozenset({"crop_pct", "include_top", "pad_size", "rescale_offset", "size_divisor", "use_square_size"})
"""Keys of classes that are not here, beside their ``do_..``."""


def steps_of(processor: Mapping[str, Any], model_type: str) -> Steps:
    """The steps of a processor.

    Args:
        processor: its file. What it does not say are the defaults of its class.
        model_type: that of the network, which says the class where the file does not.

    Raises:
        TargetError: it is of another class, or does what is not done here.
    """
    name = _class_name(processor, model_type)
    if name not in _CLASSES:
        named = f"is a {name}" if name else f"names no image_processor_type, and that of a '{model_type}' is not known here"
        raise TargetError(f"{PROCESSOR} {named}, whose steps may be others than resize, crop and normalise", fix=_FIX)
    own = _CLASSES[name]
    given = {key: value for key, value in processor.items() if value is not None}
    known = _KNOWN | ({"crop_pct"} if name == "ConvNextImageProcessor" else set())
    effects = {key for key in given if key.startswith("do_")} | _WITH_EFFECT
    if unknown := sorted(key for key in effects - known if given.get(key)):
        raise _undone(name, *((key, given[key]) for key in unknown))
    if not given.get("do_rescale", True) or abs(given.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
        raise _undone(name, *((key, given[key]) for key in ("do_rescale", "rescale_factor") if key in given))
    resample = given.get("resample", own.resample)
    if resample not in _MODES:
        raise _undone(name, ("resample", resample))
    resize = _size(name, "size", given.get("size", own.size), square=own.square) if given.get("do_resize", True) else None
    crop = _crop(name, given.get("crop_size", own.crop)) if given.get("do_center_crop", own.crops) else None
    if name == "ConvNextImageProcessor" and resize is not None:
        if not isinstance(resize, int) or crop is not None:
            raise _undone(name, *((key, given[key]) for key in ("size", "do_center_crop") if key in given))
        crop = (resize, resize)
        resize = int(resize / given.get("crop_pct", 224 / 256)) if resize < _FULL_SIZE else crop
    mean, std = (given.get(f"image_{key}", list(own.constants[place])) for place, key in enumerate(("mean", "std")))
    mean, std = ([float(each)] if isinstance(each, int | float) else list(each) for each in (mean, std))
    return Steps(resize, crop, _MODES[resample], (mean, std) if given.get("do_normalize", True) else None)


def _class_name(processor: Mapping[str, Any], model_type: str) -> str:
    """The class without what transformers has put behind its name for an implementation; empty where nothing says it."""
    named = processor.get("image_processor_type") or processor.get("feature_extractor_type")
    if not isinstance(named, str):
        return f"{_OF_MODELS[model_type]}ImageProcessor" if model_type in _OF_MODELS else ""
    return named.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")


def _size(name: str, key: str, value: Any, *, square: bool) -> Size | int:
    """A height and a width, or a shorter edge alone, as a file may write it."""
    if isinstance(value, Mapping):
        sides = {side: number for side, number in value.items() if number is not None}
        found: Any = sides.get("shortest_edge") if sides.keys() == {"shortest_edge"} else None
        if sides.keys() == {"height", "width"}:
            found = (sides["height"], sides["width"])
    elif isinstance(value, list | tuple) and len(value) == 2:
        found = tuple(value)
    else:
        found = (value, value) if square else value
    if not all(isinstance(side, int) and side > 0 for side in (found if isinstance(found, tuple) else (found,))):
        raise _undone(name, (key, value))
    size: Size | int = found
    return size


def _crop(name: str, value: Any) -> Size:
    size = _size(name, "crop_size", value, square=True)
    if isinstance(size, int):
        raise _undone(name, ("crop_size", value))
    return size


def _undone(name: str, *said: tuple[str, Any]) -> TargetError:
    listed = ", ".join(f"{key}: {value}" for key, value in said)
    return TargetError(f"{PROCESSOR} has {listed}, a step of its {name} that is not known here", fix=_FIX)
