"""An attack cell's files: one row a sample as parquet, perturbed inputs as safetensors."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

from robustkd.scoring.judging import Outcome

SAMPLES, ADVERSARIAL = "samples.parquet", "adversarial.safetensors"
KEPT_BYTES = 64 * 2**20
"""How much of the perturbed inputs a cell keeps; the first samples that fit."""


@dataclass(frozen=True)
class AttackRecord:
    """What an attack cell holds.

    Attributes:
        outcome: at the headline eps.
        broken_at: (N,) the smallest eps of the curve at which a sample was broken; inf where none did.
        adversarial: (M, *shape) float32, the perturbed inputs of the first M <= N samples.
    """

    outcome: Outcome
    broken_at: np.ndarray
    adversarial: np.ndarray


def write(record: AttackRecord, folder: Path) -> None:
    """Write a record into a cell's folder."""
    columns = {f.name: getattr(record.outcome, f.name) for f in fields(Outcome)} | {"broken_at": record.broken_at}
    pq.write_table(pa.table(columns), folder / SAMPLES)
    row_bytes = record.adversarial[:1].nbytes or 1
    kept = record.adversarial[: max(1, KEPT_BYTES // row_bytes)]
    save_file({"adversarial": np.ascontiguousarray(kept)}, folder / ADVERSARIAL)


def read(folder: Path) -> AttackRecord:
    """Read a record back."""
    table = pq.read_table(folder / SAMPLES)
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    broken_at = columns.pop("broken_at")
    return AttackRecord(Outcome(**columns), broken_at, load_file(folder / ADVERSARIAL)["adversarial"])
