"""The finished parts of an attack cell that is under way: what a killed one goes on from.

A shard is crash recovery and nothing else. It is one file in the cell's checkpoints, whole or absent, and it is used when its
checksum, which covers what cell, targets and samples it belongs to, is right; the cell's commit removes it.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from robustkd.campaigns.store.durable import write_bytes
from robustkd.evaluation.images import Evaluation, OutcomeType
from robustkd.evaluation.judging import Outcome
from robustkd.evaluation.transcripts import read_transcripts, transcript_lines
from robustkd.lazy import torch

_HASH = sha256().digest_size


class ShardFiles:
    """The shards of one cell.

    Args:
        folder: the cell's checkpoints.
        identity: everything that a shard's content depends on. One of another identity is not taken up.

    Attributes:
        seconds: what the shards that were taken up had cost.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity
        self.seconds = 0.0

    def read(self, first: int, kind: type[OutcomeType]) -> Evaluation[OutcomeType] | None:
        """The shard that begins at sample ``first``; None when it is not there, damaged, or another's."""
        try:
            content = self._file(first).read_bytes()
            if content[:_HASH] != self._hash(first, content[_HASH:]):
                return None
            arrays = load(content[_HASH:])
            found = Evaluation(
                kind.of_columns(arrays),
                torch.from_numpy(arrays["adversarial"]),
                arrays["broken_at"],
                read_transcripts(arrays["transcripts"].tobytes()) if "transcripts" in arrays else (),
                torch.from_numpy(arrays["clean"]) if "clean" in arrays else None,
                arrays.get("benign"),
                torch.from_numpy(arrays["logits"]) if "logits" in arrays else None,
                arrays.get("harmless_alarms"),
            )
            self.seconds += float(arrays["seconds"][0])
        except (OSError, SafetensorError, KeyError, ValueError, TypeError):
            return None
        return found

    def write(self, first: int, found: Evaluation[Outcome], seconds: float) -> None:
        """Keep the shard that begins at sample ``first`` and took ``seconds``.

        Raises:
            StoreError: the disk is full or not writable.
        """
        arrays = {name: np.ascontiguousarray(array) for name, array in found.outcome.columns().items()}
        arrays |= {"broken_at": found.broken_at, "adversarial": found.adversarial.numpy(), "seconds": np.array([seconds])}
        if found.transcripts:
            arrays["transcripts"] = np.frombuffer(transcript_lines(found.transcripts).encode(), np.uint8)
        if found.clean is not None:
            arrays["clean"] = np.ascontiguousarray(found.clean.numpy())
        if found.benign is not None:
            arrays["benign"] = found.benign
        if found.harmless_alarms is not None:
            arrays["harmless_alarms"] = found.harmless_alarms
        if found.logits is not None:
            arrays["logits"] = found.logits.numpy()
        content = save(arrays)
        write_bytes(self._file(first), self._hash(first, content) + content)

    def _file(self, first: int) -> Path:
        return self.folder / f"shard-{first:08d}"

    def _hash(self, first: int, content: bytes) -> bytes:
        return sha256(f"{self.identity}/{first}/".encode() + content).digest()
