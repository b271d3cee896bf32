"""Finished cells on disk. See STORE.md beside this file for the layout and why it is so."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from robustkd.campaigns.store.durable import DRAFT, exclusive_lock, flush, is_locked, lock, unwritable, write_text
from robustkd.campaigns.store.identity import digest
from robustkd.campaigns.store.meta import CellMeta, meta_from_json
from robustkd.contracts import StoreError
from robustkd.contracts.json_value import JsonObject

META = "meta.json"
PERTURBATIONS = "adversarial.safetensors"
"""The one file of a cell that may be large. No number is made from it: it is verified when it is read, and may be dropped."""
KEPT_BYTES = 64 * 2**20
"""How much of it a cell keeps where nothing else is said; the first samples that fit."""
NOTES_IN_MEMORY = 256
"""Cells whose notes are kept in memory, the last that were asked for. A campaign may have a hundred thousand."""

_Meta = TypeVar("_Meta", bound=CellMeta)


@dataclass(frozen=True)
class Entry:
    """A finished cell: its folder, what was noted about it, and the hash of that note."""

    folder: Path
    meta: CellMeta
    seal: str | None = None

    def noted(self, kind: type[_Meta]) -> _Meta:
        """What was noted about a cell of this kind.

        Raises:
            StoreError: it is a cell of another kind.
        """
        if not isinstance(self.meta, kind):
            raise self.damaged(META, "it is the note of another kind of cell")
        return self.meta

    def has(self, name: str) -> bool:
        """Whether the cell holds a file of this name."""
        return name in self.meta.files

    def read(self, name: str) -> bytes:
        """A file's content, verified.

        Raises:
            StoreError: it is missing or damaged.
        """
        try:
            content = (self.folder / name).read_bytes()
        except (OSError, ValueError) as error:
            raise _damaged(self.folder / name, getattr(error, "strerror", None) or "it cannot be read") from error
        if sha256(content).hexdigest() != self.meta.files.get(name):
            raise _damaged(self.folder / name, "its checksum differs")
        return content

    def damaged(self, name: str, why: str) -> StoreError:
        """The error that names a damaged file of this cell, and what to do."""
        return _damaged(self.folder / name, why)


class Store:
    """The finished cells of one output folder, by cell id.

    A cell is a folder that appears at once, whole, by a rename. A folder that is there is finished; everything else is
    in ``.incoming`` and, when its process is dead, is swept away by the next run.

    Attributes:
        damaged: cells that were looked for, are there and cannot be used, each with the reason.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged: dict[str, str] = {}
        self._cells = folder / "cells"
        self._incoming = folder / ".incoming"
        self._checkpoints = folder / "checkpoints"
        self._verified: dict[str, tuple[tuple[int, int], str | None]] = {}  # when each cell was written, and its seal
        self._recent: OrderedDict[str, Entry] = OrderedDict()

    @contextmanager
    def exclusive_lock(self) -> Iterator[None]:
        """Hold the folder for one driver; the system lets go of it however the process ends.

        Raises:
            StoreError: another process holds it (the message names it), or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        with exclusive_lock(self.folder):
            yield

    def prepare(self) -> None:
        """Create the folders, and ``sweep``. The caller has the folder's ``exclusive_lock``.

        Raises:
            StoreError: the folder cannot be written to.
        """
        try:
            self._cells.mkdir(parents=True, exist_ok=True)
            self._incoming.mkdir(exist_ok=True)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self.sweep()

    def sweep(self, finished: Iterable[str] = ()) -> None:
        """Sweep what dead processes left half-written, and the checkpoints of ``finished`` cells.

        Raises:
            StoreError: the folder cannot be written to.
        """
        try:
            for left in self._incoming.iterdir():
                if not is_locked(left):
                    shutil.rmtree(left, ignore_errors=True)
            for file in self.folder.iterdir():
                if DRAFT.fullmatch(file.name):
                    file.unlink(missing_ok=True)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self.discard_checkpoints(finished)

    def path(self, cell_id: str) -> Path:
        """Where a cell is, or will be."""
        return self._cells / cell_id[:2] / cell_id

    def ids(self) -> list[str]:
        """Ids of all cells that are there, whole or not, of whatever campaign."""
        return sorted(folder.name for folder in self._cells.glob("*/*") if folder.is_dir())

    def size(self, cell_id: str) -> tuple[int, int]:
        """Bytes on disk of a cell, whole or not, and of its perturbations alone."""
        sizes = {file.name: file.stat().st_size for file in self.path(cell_id).iterdir() if file.is_file()}
        return sum(sizes.values()), sizes.get(PERTURBATIONS, 0)

    def with_checkpoints(self) -> set[str]:
        """Ids of the cells that have checkpoints."""
        return {folder.name for folder in self._checkpoints.iterdir()} if self._checkpoints.is_dir() else set()

    @property
    def answers(self) -> Path:
        """Where answers of served models are kept, which no cell owns."""
        return self.folder / "answers"

    def checkpoints(self, cell_id: str) -> Path:
        """A cell's own folder while it is under way: what a killed one goes on from.

        Raises:
            StoreError: it cannot be created.
        """
        folder = self._checkpoints / cell_id
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        return folder

    def discard_checkpoints(self, cell_ids: Iterable[str]) -> None:
        """Remove the checkpoints of cells that need them no more."""
        for name in self.with_checkpoints().intersection(cell_ids):
            shutil.rmtree(self._checkpoints / name, ignore_errors=True)

    def get(self, cell_id: str) -> Entry | None:
        """A finished cell whose files are all there and unharmed; None when it has to be done (again).

        Every file but the perturbations is verified, once for each time that the cell is written. The note is read, and verified,
        again where it is not among the last ``NOTES_IN_MEMORY``.
        """
        written = self._written(cell_id)
        if written is None:
            self.damaged.pop(cell_id, None)
            return None
        verified = cell_id in self._verified and self._verified[cell_id][0] == written
        entry = self._recent.get(cell_id) if verified else None
        if entry is None:
            folder = self.path(cell_id)
            try:
                entry = _noted(folder, cell_id) if verified else _verified(folder, cell_id)
            except StoreError as error:
                self.damaged[cell_id] = error.message
                return None
        self.damaged.pop(cell_id, None)
        self._verified[cell_id] = written, entry.seal
        self._recent[cell_id] = entry
        self._recent.move_to_end(cell_id)
        if len(self._recent) > NOTES_IN_MEMORY:
            self._recent.popitem(last=False)
        return entry

    def seal(self, cell_id: str) -> str | None:
        """The hash of the note of the cell that ``get`` gives; None where there is none, or no hash."""
        known = self._verified.get(cell_id)
        if known and known[0] == self._written(cell_id):
            return known[1]
        entry = self.get(cell_id)
        return entry.seal if entry else None

    def _written(self, cell_id: str) -> tuple[int, int] | None:
        """What is another when a cell has been written anew: inode and time of its folder; None where there is none."""
        try:
            stat = self.path(cell_id).stat()
        except (OSError, ValueError):  # the latter of an id that is no file name at all
            return None
        return stat.st_ino, stat.st_mtime_ns

    def verify(self, cell_id: str) -> str | None:
        """What is wrong with a cell, all of its files read again; None when nothing is."""
        try:
            entry = _verified(self.path(cell_id), cell_id)
            if entry.has(PERTURBATIONS):
                entry.read(PERTURBATIONS)
        except StoreError as error:
            self.damaged[cell_id] = error.message
            return error.message
        return None

    def remove(self, cell_id: str) -> None:
        """Take a cell out of the store, at once and whole.

        Raises:
            StoreError: it cannot be removed.
        """
        try:
            self._incoming.mkdir(parents=True, exist_ok=True)
            aside = self._incoming / f"{cell_id}-{uuid.uuid4().hex[:8]}"
            self.path(cell_id).rename(aside)
            shutil.rmtree(aside)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self._verified.pop(cell_id, None)

    def drop_perturbations(self, cell_id: str) -> int:
        """Forget a finished cell's perturbed inputs and keep its numbers; returns the bytes that were freed.

        Raises:
            StoreError: the cell cannot be written.
        """
        entry = self.get(cell_id)
        if entry is None or not entry.has(PERTURBATIONS):
            return 0
        file = entry.folder / PERTURBATIONS
        freed = file.stat().st_size if file.is_file() else 0
        # The note as it is: a later version may have noted what this one does not know.
        meta = {key: value for key, value in json.loads((entry.folder / META).read_bytes()).items() if key != "seal"}
        kept = {name: hash_ for name, hash_ in entry.meta.files.items() if name != PERTURBATIONS}
        write_text(entry.folder / META, _sealed(meta | {"files": kept}))
        file.unlink(missing_ok=True)  # after the note: a cell must not list a file that it lacks
        self._verified.pop(cell_id, None)
        return freed

    @contextmanager
    def write(self, cell_id: str, meta: CellMeta) -> Iterator[Path]:
        """A folder to fill; on leaving the block it becomes the cell, on an exception nothing does.

        The store adds its id, its files and the time to ``meta``. Where another process has written the same cell meanwhile, from the same
        targets, attacks and code, that one stays: a reader never finds it missing. (Not so where it lacks a check.)

        Raises:
            StoreError: the disk is full or not writable.
        """
        draft = self._incoming / f"{cell_id}-{uuid.uuid4().hex[:8]}"
        descriptor = None
        try:
            draft.mkdir(parents=True)
            descriptor = lock(draft)
            yield draft
            files = {file.name: _sha256(file) for file in sorted(draft.iterdir())}
            (draft / META).write_text(_sealed(meta.to_json() | {"id": cell_id, "files": files, "finished": _now()}))
            for file in draft.iterdir():
                flush(file)
            flush(draft)
            self._commit(cell_id, draft, meta)
        except (OSError, SafetensorError) as error:
            raise unwritable(self.folder, error) from error
        finally:
            if descriptor is not None:
                os.close(descriptor)
            shutil.rmtree(draft, ignore_errors=True)

    def _commit(self, cell_id: str, draft: Path, meta: CellMeta) -> None:
        final = self.path(cell_id)
        if not final.parent.is_dir():
            final.parent.mkdir(parents=True, exist_ok=True)
            flush(self._cells)
        while True:
            present = self.get(cell_id)
            if present and present.meta.complete and present.meta.made_from == meta.made_from and not self.verify(cell_id):
                return
            if (
                final.exists()
            ):  # damaged, made from a target that has been trained anew since, or checks that could not all be run
                replaced = draft.with_suffix(".replaced")
                with suppress(FileNotFoundError):
                    final.rename(replaced)
                shutil.rmtree(replaced, ignore_errors=True)
            try:
                draft.rename(final)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was between the two lines
                    raise
            else:
                flush(final.parent)
                return


def _verified(folder: Path, cell_id: str) -> Entry:
    """The cell in ``folder``, every file but the perturbations read and compared.

    Raises:
        StoreError: what is wrong with it.
    """
    entry = _noted(folder, cell_id)
    for name in entry.meta.files:
        if name != PERTURBATIONS:
            entry.read(name)
        elif not (folder / name).is_file():
            raise entry.damaged(name, "it is missing")
    return entry


def _noted(folder: Path, cell_id: str) -> Entry:
    """The cell in ``folder``, its note alone read and compared.

    Raises:
        StoreError: what is wrong with it.
    """
    file = folder / META
    try:
        content = json.loads(file.read_bytes())
        files, sealed = content["files"], content.pop("seal", None)
        # Cells of the first layout carry no seal.
        sound = content["id"] == cell_id and (sealed == digest(content) or (sealed is None and "layout" not in content))
        sound &= all(isinstance(item, str) and Path(name).name == name for name, item in files.items())
        meta = meta_from_json(content)
    except OSError as error:
        raise _damaged(file, error.strerror or "it cannot be read") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(file, "it is no note of a cell") from error
    if not sound:
        raise _damaged(file, "its checksum differs")
    return Entry(folder, meta, sealed)


def _damaged(file: Path, why: str) -> StoreError:
    return StoreError(
        f"{file} is damaged: {why}", fix="robustkd store verify --remove, then robustkd run: the cell is done again"
    )


def _sealed(meta: JsonObject) -> str:
    """The note of a cell as text, with its own checksum."""
    plain = json.loads(json.dumps({**meta, "layout": 2}, allow_nan=False))
    return json.dumps(plain | {"seal": digest(plain)}, indent=1, sort_keys=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _sha256(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()
