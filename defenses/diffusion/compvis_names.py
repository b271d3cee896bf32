"""Weights with the names of CompVis' and Stability's code, under those of diffusers.

Checkpoints of Stable Diffusion 1.x, 2.x and XL are passed on as one file with these names, and so are some erased UNets. The names are
converted by diffusers' own functions, which read nothing but the tensors and a network's configuration. Of a file that also has averaged
weights (``model_ema``) the others are taken, as diffusers does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from robustkd.contracts import TargetError

if TYPE_CHECKING:
    from torch import Tensor

_UNET = "model.diffusion_model."
_BLOCKS = ("input_blocks.", "output_blocks.", "middle_block.")
_OPEN_CLIP = {"text_encoder": "cond_stage_model.model.", "text_encoder_2": "conditioner.embedders.1.model."}


def has_compvis_names(names: Collection[str]) -> bool:
    """Whether some of the names are those of a UNet of CompVis' code."""
    return any(f".{block}" in f".{name}" for name in names for block in _BLOCKS)


def of_unet(network: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The UNet's tensors by diffusers' names, whatever stands before CompVis' names."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    before = next(name.partition(block)[0] for name in tensors for block in _BLOCKS if f".{block}" in f".{name}")
    given = {_UNET + name.removeprefix(before): tensor for name, tensor in tensors.items() if name.startswith(before)}
    converted: dict[str, Tensor] = convert_ldm_unet_checkpoint(given, dict(network.config))
    return converted


def part_of_checkpoint(part: str, network: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One network's tensors, by diffusers' and transformers' names, of a checkpoint of the whole model.

    Args:
        part: ``unet``, ``vae``, ``text_encoder`` or ``text_encoder_2``.
        network: of the same part, in any weights.
        tensors: of the checkpoint.

    Raises:
        TargetError: the checkpoint has not that part.
    """
    from diffusers.loaders import single_file_utils as theirs

    found: dict[str, Tensor]
    if part == "unet":
        found = of_unet(network, {name: tensor for name, tensor in tensors.items() if name.startswith(_UNET)} or _none(part))
    elif part == "vae":
        found = theirs.convert_ldm_vae_checkpoint(tensors, dict(network.config))
    elif any(name.startswith(_OPEN_CLIP[part]) for name in tensors):
        found = theirs.convert_open_clip_checkpoint(network, tensors, prefix=_OPEN_CLIP[part])
        if not any(name.endswith("text_projection.weight") for name in network.state_dict()):
            found.pop("text_projection.weight", None)  # Stable Diffusion 2.x never asks for it
    else:
        found = theirs.convert_ldm_clip_checkpoint(tensors)
    return found or _none(part)


def _none(part: str) -> dict[str, Tensor]:
    raise TargetError(
        f"it has no weights of the part '{part}' under the names of CompVis' or Stability's code",
        fix="give a checkpoint of the whole model, of the kind that folder or hub describes",
    )
