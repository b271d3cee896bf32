"""Parts of a text-to-image model whose weights are in a file: one by itself, as the authors of erasing methods publish them, or all parts
in one, as checkpoints are passed on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from robustkd.contracts import TargetError
from robustkd.defenses.diffusion.compvis_names import has_compvis_names, of_unet, part_of_checkpoint
from robustkd.lazy import nn, torch
from robustkd.targets.checkpoint_file import read
from robustkd.targets.fit import require_fit

if TYPE_CHECKING:
    from torch import Tensor

_OUTDATED = "embeddings.position_ids"
"""Numbers from 0 on that transformers' CLIP once stored."""


def load_part(network: nn.Module, file: Path, *, partial: bool) -> None:
    """Put the tensors of a file into a network.

    Whatever stands before the network's own names in the file (``state_dict.``, ``module.``, ``unet.``) is left out. A UNet may have the
    names of CompVis' code.

    Args:
        network: the part as its base model has it.
        file: of torch.save, which is read without running its code, or safetensors.
        partial: whether the file may lack tensors, which stay the base's.

    Raises:
        TargetError: it cannot be read, or does not fit the network.
    """
    tensors = read(file).flat
    if has_compvis_names(tensors):
        if partial:
            raise TargetError(
                f"{file} has the names of CompVis' code, and in part such a file cannot be read",
                fix="give a file with the whole UNet, or one with diffusers' names",
            )
        tensors = of_unet(network, tensors)
    _put(network, tensors, file, partial=partial)


def load_checkpoint(networks: Mapping[str, nn.Module], file: Path) -> None:
    """Put the tensors of a whole model's file, with the names of CompVis' or Stability's code, into its networks.

    Args:
        networks: ``unet``, ``vae`` and the text encoders, by their names in diffusers.
        file: of torch.save, which is read without running its code, or safetensors.

    Raises:
        TargetError: it cannot be read, lacks a part, or does not fit a network.
    """
    tensors = {name.removeprefix("state_dict."): tensor for name, tensor in read(file).flat.items()}
    for part, network in networks.items():
        try:
            given = part_of_checkpoint(part, network, tensors)
        except TargetError as error:
            raise TargetError(f"{file}: {error.message}", fix=error.fix) from error
        except (KeyError, AttributeError, IndexError) as error:  # a tensor that the conversion looks for
            raise TargetError(
                f"{file} does not fit the part '{part}': it lacks {error}",
                fix="check that folder or hub describe the same kind of model",
            ) from error
        _put(network, given, f"{file} ({part})", partial=False)


def _put(network: nn.Module, found: Mapping[str, Tensor], source: object, *, partial: bool) -> None:
    own = network.state_dict()
    tensors = {name: tensor for name, tensor in found.items() if not name.endswith(_OUTDATED)}
    before = _prefix(tensors, own)
    given = {name.removeprefix(before): tensor for name, tensor in tensors.items()}
    unexpected, missing = given.keys() - own.keys(), own.keys() - given.keys()
    require_fit(
        source,
        missing=() if partial else missing,
        unexpected=unexpected,
        mismatched=[name for name in given.keys() & own.keys() if given[name].shape != own[name].shape],
        fix="say 'partial: true' where the file holds only what was changed, and the rest is the base model's"
        if missing and not unexpected
        else "take the part of the model that the file was made from",
    )
    with torch.no_grad():
        network.load_state_dict(given, strict=False)


def _prefix(names: Collection[str], own: Collection[str]) -> str:
    """What stands before the network's names in most of ``names``; "" where no name ends like one of the network's."""
    found: dict[str, int] = {"": 0}
    for name in names:
        parts = name.split(".")
        # The longest of the network's names that it ends with.
        cut = next((cut for cut in range(len(parts)) if ".".join(parts[cut:]) in own), None)
        if cut is not None:
            before = "".join(f"{part}." for part in parts[:cut])
            found[before] = found.get(before, 0) + 1
    return max(found, key=lambda before: found[before])
