"""A training's state in one file that is either whole or absent: safetensors with the facts as JSON in its header.

Written beside and renamed over, so that a kill at any instant leaves the last whole state. A file that is damaged all the same
(disk, copy) or that belongs to another training is told by its checksum or identity, reported, and ignored.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_LOG = logging.getLogger(__name__)
_HEADER = "training"


@dataclass(frozen=True)
class Snapshot:
    """Everything a training needs to go on: tensors by name, and plain JSON."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


class Checkpoint:
    """The checkpoint of one training.

    Args:
        folder: made when it is missing.
        identity: what the training is; a checkpoint of another identity is not taken up.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.file = folder / "training.safetensors"
        self.identity = identity
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, snapshot: Snapshot) -> None:
        """Replace the checkpoint by ``snapshot``, atomically and durably."""
        from safetensors.torch import save_file  # late: it imports torch

        # The clone parts tensors that share memory (tied weights), which safetensors refuses.
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in snapshot.tensors.items()}
        facts = {"identity": self.identity, "checksum": _checksum(tensors), "facts": snapshot.facts}
        beside = self.file.with_suffix(".partial")
        save_file(tensors, beside, metadata={_HEADER: json.dumps(facts)})
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.replace(self.file)
        _sync_folder(self.file.parent)

    def read(self) -> Snapshot | None:
        """The last whole state of this training; None, with a logged warning when there was a file, if there is none."""
        if not self.file.exists():
            return None
        try:
            with safe_open(self.file, framework="pt") as opened:
                header = json.loads(opened.metadata()[_HEADER])
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
            damaged = header["checksum"] != _checksum(tensors)
            foreign = header["identity"] != self.identity
            facts = header["facts"]
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            _LOG.warning("%s is damaged (%s: %s): training starts over", self.file, type(error).__name__, error)
            return None
        if damaged or foreign:
            reason = "is damaged (wrong checksum)" if damaged else "belongs to another training (parameters, data or seed)"
            _LOG.warning("%s %s: training starts over", self.file, reason)
            return None
        return Snapshot(tensors, facts)


def grouped(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors with ``name/`` before each name."""
    return {f"{name}/{key}": tensor for key, tensor in tensors.items()}


def group(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``grouped``: the tensors whose names begin with ``name/``, without it."""
    return {key.removeprefix(f"{name}/"): tensor for key, tensor in tensors.items() if key.startswith(f"{name}/")}


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    total = 0
    for name, tensor in sorted(tensors.items()):
        total = zlib.crc32(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, total)
    return total


def _sync_folder(folder: Path) -> None:
    # The rename itself is durable only once the folder is. Windows cannot open one, and does not need it.
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
