"""Finished cells on disk. See STORE.md beside this file for the layout and why it is so."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from robustkd.contracts import StoreError

META = "meta.json"


@dataclass(frozen=True)
class Entry:
    """A finished cell: its folder, and what was noted about it."""

    folder: Path
    meta: dict[str, Any]


class Store:
    """The finished cells of one output folder, by cell id.

    A cell is a folder that appears at once, whole, by a rename. A folder that is there is finished; everything else is
    in ``.incoming`` and is swept away by the next run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._cells = folder / "cells"
        self._incoming = folder / ".incoming"

    def prepare(self) -> None:
        """Create the folders and sweep what a killed run left half-written.

        Raises:
            StoreError: the folder cannot be written to.
        """
        try:
            self._cells.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self._incoming, ignore_errors=True)
            self._incoming.mkdir()
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def path(self, cell_id: str) -> Path:
        """Where a cell is, or will be."""
        return self._cells / cell_id[:2] / cell_id

    def checkpoints(self, cell_id: str) -> Path:
        """A training's own folder while it lasts."""
        folder = self.folder / "checkpoints" / cell_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def discard_checkpoints(self, cell_id: str) -> None:
        """Remove the checkpoints of a finished training."""
        shutil.rmtree(self.folder / "checkpoints" / cell_id, ignore_errors=True)

    def get(self, cell_id: str) -> Entry | None:
        """A finished cell whose files are all there and unharmed; None when it has to be done (again)."""
        folder = self.path(cell_id)
        try:
            meta = json.loads((folder / META).read_text())
            whole = all(_sha256(folder / name) == digest for name, digest in meta["files"].items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return Entry(folder, meta) if whole else None

    @contextmanager
    def write(self, cell_id: str, meta: dict[str, Any]) -> Iterator[Path]:
        """A folder to fill; on leaving the block it becomes the cell, on an exception nothing does.

        ``meta`` may be added to inside the block.

        Raises:
            StoreError: the disk is full or not writable.
        """
        draft = self._incoming / f"{cell_id}-{uuid.uuid4().hex[:8]}"
        try:
            draft.mkdir(parents=True)
            yield draft
            finished = datetime.now(UTC).isoformat(timespec="seconds")
            files = {file.name: _sha256(file) for file in sorted(draft.iterdir())}
            (draft / META).write_text(json.dumps(meta | {"files": files, "finished": finished}, indent=1, sort_keys=True))
            for file in draft.iterdir():
                _flush(file)
            final = self.path(cell_id)
            final.parent.mkdir(parents=True, exist_ok=True)
            if final.exists():  # damaged, or finished by another run meanwhile: the new one is as good
                final.rename(draft.with_suffix(".replaced"))
            draft.rename(final)
            _flush(final.parent)
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        finally:
            for left in (draft, draft.with_suffix(".replaced")):
                shutil.rmtree(left, ignore_errors=True)


def write_text(file: Path, text: str) -> None:
    """Replace a text file in one step, so that a reader or a crash never meets half of it."""
    draft = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    try:
        draft.write_text(text, encoding="utf-8")
        _flush(draft)
        draft.replace(file)
    except OSError as error:
        raise _unwritable(file.parent, error) from error
    finally:
        draft.unlink(missing_ok=True)


def _unwritable(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        f"the output folder {folder} cannot be written: {error.strerror or error}",
        fix="free space or correct permissions, or choose another folder with --out; finished cells are kept",
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
