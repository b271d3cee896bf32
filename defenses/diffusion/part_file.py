"""A part of a text-to-image model whose weights are in a file by themselves, as the authors of erasing methods publish them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from robustkd.contracts import TargetError
from robustkd.lazy import nn, torch
from robustkd.targets.checkpoint_file import read
from robustkd.targets.fit import require_fit

_COMPVIS = ("input_blocks.", "output_blocks.", "middle_block.")
_OUTDATED = "embeddings.position_ids"
"""Numbers from 0 on that transformers' CLIP once stored."""


def load_part(network: nn.Module, file: Path, *, partial: bool) -> None:
    """Put the tensors of a file into a network.

    Whatever stands before the network's own names in the file (``state_dict.``, ``module.``, ``unet.``) is left out.

    Args:
        network: the part as its base model has it.
        file: of torch.save, which is read without running its code, or safetensors.
        partial: whether the file may lack tensors, which stay the base's.

    Raises:
        TargetError: it cannot be read, or does not fit the network.
    """
    own = network.state_dict()
    tensors = {name: tensor for name, tensor in read(file).flat.items() if not name.endswith(_OUTDATED)}
    before = _prefix(tensors, own)
    given = {name.removeprefix(before): tensor for name, tensor in tensors.items()}
    unexpected, missing = given.keys() - own.keys(), own.keys() - given.keys()
    if any(name.startswith(_COMPVIS) or f".{_COMPVIS[0]}" in name for name in unexpected):
        raise TargetError(
            f"{file} has the names of CompVis' code, such as {min(unexpected)}",
            fix="give the file with diffusers' names, or convert it: StableDiffusionPipeline.from_single_file(..).unet.save_pretrained(..)",
        )
    require_fit(
        file,
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
