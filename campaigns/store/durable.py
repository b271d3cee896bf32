"""Writing that survives a crash: whole files, flushed to the disk, and folders that one process holds."""

from __future__ import annotations

import os
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from robustkd.contracts import StoreError, UsageError

try:
    import fcntl
except ImportError:  # on Windows, where processes are not started as the engines do it either
    raise UsageError(
        "campaigns do not run on Windows itself",
        fix="use WSL 2 (wsl --install, then install robustkd in it), Linux or macOS; robustkd.attack, evaluate and audit work here",
    ) from None

DRAFT = re.compile(r"\..+\.[0-9a-f]{8}")
"""The name of a file that is being written; one that nobody writes any more may be removed."""


@contextmanager
def atomic_replace(file: Path) -> Iterator[Path]:
    """A name to write to; on leaving the block it takes the place of ``file``, in one step, on an exception nothing does.

    Raises:
        StoreError: the disk is full or not writable.
    """
    draft = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield draft
        flush(draft)
        draft.replace(file)
        flush(file.parent)
    except OSError as error:
        raise unwritable(file.parent, error) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Replace a text file, so that a reader or a crash never meets half of it; fails like ``atomic_replace``."""
    write_bytes(file, text.encode())


def write_bytes(file: Path, content: bytes) -> None:
    """Replace a binary file as ``write_text`` does a text file."""
    with atomic_replace(file) as draft:
        draft.write_bytes(content)


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Hold a folder; the system lets go of it however the process ends.

    Raises:
        StoreError: another process holds it (the message names it), or it cannot be written.
    """
    try:
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        _take(lock, folder)
        yield
    finally:
        os.close(lock)


def _take(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}, since {now}".encode(), 0)
    except BlockingIOError as error:
        holder = "".join(c for c in os.pread(lock, 200, 0).decode(errors="replace") if c.isprintable())
        raise StoreError(
            f"another run is using {folder}: {holder or 'a process that has just begun'}",
            fix="wait for it or stop it, or choose another folder with --out",
        ) from error
    except OSError as error:
        raise unwritable(folder, error) from error


def lock(folder: Path) -> int:
    """Mark a folder as being written by this process; the mark goes when the descriptor, or the process, does."""
    descriptor = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # a file system without locks: then a sweep may take the folder, and its cell is done again
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def is_locked(path: Path) -> bool:
    """Whether a living process holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(descriptor)
    return False


def unwritable(folder: Path, error: Exception) -> StoreError:
    """The error that says why ``folder`` cannot be written."""
    return StoreError(
        f"the output folder {folder} cannot be written: {getattr(error, 'strerror', None) or error}",
        fix="free space or correct permissions, or choose another folder with --out; finished cells are kept",
    )
