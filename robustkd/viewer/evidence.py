"""What became of each sample of a trained defense, from the cells of its attacks; and what was kept of one sample."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open

from robustkd.campaigns.store import samples
from robustkd.campaigns.store.store import PERTURBATIONS, Entry
from robustkd.contracts import StoreError, Transcript
from robustkd.evaluation.judging import ImageOutcome, PromptOutcome
from robustkd.reporting.presentation import presentation
from robustkd.reporting.samples import BROKEN, STANDS, UNJUDGED
from robustkd.viewer.runs import Run

Show = Literal["all", "broken", "standing", "unfit", "unjudged", "disputed"]
SHOWS: tuple[Show, ...] = ("all", "broken", "standing", "unfit", "unjudged", "disputed")

Value = TypeVar("Value")


class Recent(Generic[Value]):
    """The last few of what takes time to make, by key."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[Hashable, Value] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """What is kept under ``key``, or what ``make`` makes."""
        if key not in self._kept:
            self._kept[key] = make()
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


@dataclass(frozen=True, eq=False)
class AttackedRows:
    """One attack on a trained defense, sample by sample.

    Attributes:
        counted: whether it is under the campaign's threat model, and part of the worst case.
        state: (N,) int8: ``BROKEN``, ``STANDS`` or ``UNJUDGED``.
        after: (N,) the class after the attack; None of requests.
        spent: (N,) float32, the distance from the clean input, or the attempts.
        norm: (N,) float32, of a minimum-norm attack the distance in its own norm, else ``spent``; None of requests.
        disputed: (N,) bool, whether the judges say different things of the answer that decided a request.
    """

    attack: str
    entry: Entry
    counted: bool
    state: np.ndarray
    after: np.ndarray | None
    spent: np.ndarray
    norm: np.ndarray | None
    disputed: np.ndarray


@dataclass(frozen=True, eq=False)
class SampleTable:
    """The samples of one trained defense.

    Attributes:
        index: (N,) positions in the data set.
        label: (N,) the true class, or the category of a request.
        eligible: (N,) bool, whether an attack could succeed at all.
        before: (N,) the class before any attack; None of requests.
    """

    index: np.ndarray
    label: np.ndarray
    eligible: np.ndarray
    before: np.ndarray | None
    attacks: tuple[AttackedRows, ...]

    @property
    def of_images(self) -> bool:
        """Whether the samples are inputs of a classifier, and not requests."""
        return self.before is not None

    @property
    def counted(self) -> tuple[AttackedRows, ...]:
        """The attacks of the worst case; all where none is."""
        return tuple(attack for attack in self.attacks if attack.counted) or self.attacks

    def state(self) -> np.ndarray:
        """(N,) int8, over the attacks of the worst case: broken by any, else not judged by any, else standing."""
        states = np.stack([attack.state for attack in self.counted])
        return np.where((states == BROKEN).any(0), BROKEN, np.where((states == UNJUDGED).any(0), UNJUDGED, STANDS))

    def rows(self, show: str, by: str = "") -> np.ndarray:
        """The rows that are shown: of all, broken, standing, unfit (not eligible before any attack), unjudged or disputed ones.

        Args:
            by: an attack: the state is the one that it left.
        """
        own = next((attack for attack in self.attacks if attack.attack == by), None)
        state = own.state if own else self.state()
        wanted = {
            "broken": self.eligible & (state == BROKEN),
            "standing": self.eligible & (state == STANDS),
            "unfit": ~self.eligible,
            "unjudged": self.eligible & (state == UNJUDGED),
            "disputed": own.disputed if own else np.any([attack.disputed for attack in self.attacks], axis=0),
        }
        chosen: np.ndarray = np.flatnonzero(wanted.get(show, np.ones(len(self.label), dtype=bool)))
        return chosen

    def breakers(self, row: int) -> list[AttackedRows]:
        """The attacks that broke a sample."""
        return [attack for attack in self.attacks if self.eligible[row] and attack.state[row] == BROKEN]


def sample_table(run: Run, defense: str, seed: int) -> SampleTable | None:
    """The samples of a trained defense; None where no attack on it is finished."""
    results = run.results
    trained = results.defenses if results else ()
    counted = {name for item in trained if (item.defense, item.seed) == (defense, seed) for name in item.attacks}
    found: list[AttackedRows] = []
    first: ImageOutcome | PromptOutcome | None = None
    for place in run.attacks():
        if (place.defense, place.seed) != (defense, seed):
            continue
        entry = run.entry(place.cell_id)
        try:
            outcome = samples.read(entry).outcome if entry else None
        except StoreError:
            continue  # `robustkd store verify` names it
        if entry is None or not isinstance(outcome, ImageOutcome | PromptOutcome):
            continue
        first = first or outcome
        if len(outcome) != len(first):
            continue
        shown = presentation("images" if isinstance(outcome, ImageOutcome) else "text")
        taken = shown.taken_for(outcome)
        found.append(
            AttackedRows(
                place.attack,
                entry,
                not counted or place.attack in counted,
                np.where(taken >= BROKEN, BROKEN, taken).astype(np.int8),
                outcome.after.astype(np.int32) if isinstance(outcome, ImageOutcome) else None,
                outcome.spent.astype(np.float32),
                outcome.norm.astype(np.float32) if isinstance(outcome, ImageOutcome) else None,
                _disputed(entry, len(outcome)),
            )
        )
    if first is None:
        return None
    before = first.before if isinstance(first, ImageOutcome) else None
    return SampleTable(first.index, first.label, first.eligible, before, tuple(found))


def transcripts(entry: Entry) -> list[Transcript]:
    """What became of each request; none where the file cannot be read."""
    try:
        return samples.transcripts(entry)
    except StoreError:
        return []


def _disputed(entry: Entry, n: int) -> np.ndarray:
    """(N,) bool, of an attack on requests whether the judges differ on the answer that decided each."""
    disputed = np.zeros(n, dtype=bool)
    for row, one in enumerate(transcripts(entry)[:n]):
        disputed[row] = len(set(one.verdicts.values())) > 1
    return disputed


class KeptInputs:
    """Perturbed inputs by their rows. A file is compared with its checksum once, and then a row is read and not all of it."""

    def __init__(self) -> None:
        self._sound: Recent[bool] = Recent(4096)

    def row(self, entry: Entry, row: int, which: str = "adversarial", *, verified: bool = True) -> np.ndarray | None:
        """(*shape) float32, the input of a row; None where it was not kept, or its file is damaged.

        Args:
            verified: False for what is not shown itself, or was compared with something else.
        """
        file = entry.folder / PERTURBATIONS
        if not entry.has(PERTURBATIONS):
            return None
        try:
            stat = file.stat()
            expected = entry.meta.files[PERTURBATIONS]
            if verified and not self._sound.get((file, stat.st_mtime_ns, stat.st_size), lambda: _sha256(entry) == expected):
                return None
            with safe_open(file, framework="numpy") as opened:
                rows = opened.get_slice(which)
                if row >= rows.get_shape()[0]:
                    return None
                return np.asarray(rows[row : row + 1], dtype=np.float32)[0]
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, IndexError):
            return None


def _sha256(entry: Entry) -> str:
    with (entry.folder / PERTURBATIONS).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
