"""Hashes of images that are known already, so that a folder of 50,000 files is not decoded anew by each process that asks.

A hash is always one of pixels and labels. What is remembered is that certain files had it: files of the same names, sizes and times, read
in the same way. The time of the last change of a file's entry is among them, which copying and ``touch`` cannot set back.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from robustkd.contracts.data import Remember
from robustkd.data.files import cache_folder


def remembered(files: Sequence[Path], labels: np.ndarray, how: object) -> Remember:
    """A memory of the hashes of such images, in the user's cache; where that cannot be written, nothing is remembered.

    Args:
        files: of each row; one file may hold several.
        labels: (N,) of all rows.
        how: all that the pixels depend on beside the files: parameters and the version of the code that decodes.
    """

    def remember(rows: np.ndarray, compute: Callable[[], str]) -> str:
        state = hashlib.sha256(repr(how).encode())
        state.update(np.ascontiguousarray(rows, "<i8").tobytes() + np.ascontiguousarray(labels[rows], "<i8").tobytes())
        stamps: dict[Path, str] = {}
        for row in rows:
            file = files[row]
            if file not in stamps:
                try:
                    stat = file.stat()
                except OSError:
                    return compute()  # which says what is wrong with it
                stamps[file] = f"{file.absolute()}\0{stat.st_ino}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\n"
                state.update(stamps[file].encode(errors="surrogateescape"))
        note = cache_folder() / "digests" / state.hexdigest()
        with suppress(OSError):
            known = note.read_text(encoding="ascii")
            if len(known) == hashlib.sha256().digest_size * 2:
                return known
        found = compute()
        with suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            draft = note.with_name(f".{note.name}.{os.getpid()}")
            draft.write_text(found, encoding="ascii")
            draft.replace(note)
        return found

    return remember
