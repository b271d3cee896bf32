"""An attack cell's files: one row a sample as parquet, perturbed inputs as safetensors, transcripts as JSON lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load, save

from robustkd.campaigns.store.store import PERTURBATIONS, Entry
from robustkd.contracts import Transcript
from robustkd.evaluation.judging import ImageOutcome, Outcome, PromptOutcome
from robustkd.evaluation.transcripts import read_transcripts, transcript_lines

SAMPLES, TRANSCRIPTS = "samples.parquet", "transcripts.jsonl"
_TYPES = {pa.int64(): np.int64, pa.float32(): np.float32, pa.float64(): np.float64}


@dataclass(frozen=True)
class AttackRecord:
    """What happened to each sample of an attack cell.

    Attributes:
        outcome: at the headline eps.
        broken_at: (N,) the smallest eps of the curve at which a sample was broken, or (N, R) on each draw (see ``Evaluation``);
            inf where none did.
    """

    outcome: Outcome
    broken_at: np.ndarray

    @property
    def broken_on_most(self) -> np.ndarray:
        """(N,) the smallest eps at which a sample was broken on more than half of the draws, if there are any; else ``broken_at``."""
        broken_at = self.broken_at
        return broken_at if broken_at.ndim == 1 else np.sort(broken_at, axis=1)[:, broken_at.shape[1] // 2]

    def robust_share(self, eps: float) -> np.ndarray:
        """(N,) as ``Outcome.robust_share``, at an eps of the curve."""
        held = ~(self.broken_at <= eps)
        share: np.ndarray = (
            self.outcome.eligible & held if held.ndim == 1 else np.minimum(self.outcome.clean_share, held.mean(1))
        )
        return share


def rows_kept(sample_bytes: int, limit: int) -> int:
    """How many perturbed inputs of ``sample_bytes`` each fit into ``limit`` bytes; one at least, unless nothing is to be kept."""
    return max(1, limit // max(1, sample_bytes)) if limit else 0


def write(
    record: AttackRecord,
    adversarial: np.ndarray,
    folder: Path,
    *,
    clean: np.ndarray | None = None,
    logits: np.ndarray | None = None,
    transcripts: Sequence[Transcript] = (),
) -> None:
    """Write a record, and the (M, *shape) perturbed inputs of its first M <= N samples, into a cell's folder.

    Of an attack on a classifier also its (M, 2, K) ``logits`` of their clean and perturbed inputs. Of an attack on prompts also what
    became of each request, and what a model drew for it (``adversarial``, and ``clean`` when it was not attacked).
    """
    columns = record.outcome.columns() | {"broken_at": record.broken_at}
    pq.write_table(pa.table({name: _column(array) for name, array in columns.items()}), folder / SAMPLES)
    if len(adversarial):
        arrays = {"adversarial": adversarial} | ({} if clean is None else {"clean": clean})
        arrays |= {} if logits is None else {"logits": logits}
        (folder / PERTURBATIONS).write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
    if transcripts:
        (folder / TRANSCRIPTS).write_text(transcript_lines(transcripts), encoding="utf-8")


def read(entry: Entry) -> AttackRecord:
    """Read a record back.

    Raises:
        StoreError: its file is missing or damaged.
    """
    content = entry.read(SAMPLES)
    try:
        # Not read_table: it opens a data set, and takes four times as long.
        table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
        columns = {name: _array(table.column(name).combine_chunks()) for name in table.column_names}
        return AttackRecord(_outcome(columns, asked=entry.has(TRANSCRIPTS)), columns["broken_at"])
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, NotImplementedError) as error:
        raise entry.damaged(SAMPLES, str(error)) from error


def _outcome(columns: Mapping[str, np.ndarray], *, asked: bool) -> Outcome:
    """The outcome of images or, if they were ``asked``, of requests."""
    if not asked:
        return ImageOutcome.of_columns(columns)
    if "attempts" not in columns:  # it was written when the outcome of a request was stored in the columns of an image's
        former = {"eligible": columns["correct"], "attempts": columns["norm"].astype(np.int64)}
        columns = {**columns, **former, "unjudged": np.zeros(len(columns["index"]), dtype=bool)}
    return PromptOutcome.of_columns(columns)


def _column(array: np.ndarray) -> pa.Array:
    """An array as a column, of lists if it is (N, R). Neither way by Arrow's own conversion, which imports pandas: seconds, and 60 MB."""
    if array.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(_column(array.reshape(-1)), array.shape[1])
    if array.dtype == bool:
        return pa.Array.from_buffers(pa.bool_(), len(array), [None, pa.py_buffer(np.packbits(array, bitorder="little"))])
    return pa.Array.from_buffers(
        pa.from_numpy_dtype(array.dtype), len(array), [None, pa.py_buffer(np.ascontiguousarray(array))]
    )


def _array(column: pa.Array) -> np.ndarray:
    """The NumPy array of a column that has no missing values."""
    if pa.types.is_fixed_size_list(column.type):
        return _array(column.flatten()).reshape(len(column), column.type.list_size)
    values = column.buffers()[1]
    if column.null_count or values is None:
        raise ValueError("it has missing values")
    if pa.types.is_boolean(column.type):
        bits = np.unpackbits(np.frombuffer(values, np.uint8), bitorder="little")
        return bits[column.offset : column.offset + len(column)].astype(bool)
    array = np.frombuffer(values, _TYPES[column.type])
    return array[column.offset : column.offset + len(column)]


def transcripts(entry: Entry) -> list[Transcript]:
    """What became of each request of an attack on prompts; none for another attack.

    Raises:
        StoreError: their file is missing or damaged.
    """
    if not entry.has(TRANSCRIPTS):
        return []
    content = entry.read(TRANSCRIPTS)
    try:
        return list(read_transcripts(content))
    except (ValueError, TypeError, RecursionError) as error:
        raise entry.damaged(TRANSCRIPTS, str(error)) from error


def perturbed(entry: Entry, which: str = "adversarial") -> np.ndarray | None:
    """(M, *shape) float32, the perturbed inputs of the first M samples; None when none were kept.

    Args:
        which: ``clean`` for what a model drew for the same requests when it was not attacked; ``logits`` for a classifier's, (M, 2, K),
            which cells of earlier versions lack.

    Raises:
        StoreError: their file is missing or damaged.
    """
    if not entry.has(PERTURBATIONS):
        return None
    content = entry.read(PERTURBATIONS)
    try:
        return load(content)[which]
    except (SafetensorError, KeyError, ValueError) as error:
        raise entry.damaged(PERTURBATIONS, str(error)) from error
