"""A cache on disk of a server's answers: no request is paid for twice.

Each answer is one JSON file, named by the hash of its request. The file is also the lock: the process that holds it sends the request,
and others that want the same answer wait and read it. A file that was not written to its end is written again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from robustkd.contracts import StoreError
from robustkd.contracts.json_value import JsonObject


class AnswerCache:
    """The cached answers in a folder.

    Args:
        folder: made when the first answer is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, request: JsonObject, ask: Callable[[], JsonObject]) -> JsonObject:
        """The kept reply to a request of JSON values; where there is none, what ``ask`` returns, which is kept.

        Raises:
            StoreError: the folder cannot be written. Whatever ``ask`` raises: then nothing is kept.
        """
        file = self._file(request)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with _held(file) as descriptor:
                if (known := _read(descriptor)) is not None:
                    return known
                reply = ask()
                _write(descriptor, {"request": request, "reply": reply})
                return reply
        except OSError as error:
            raise StoreError(
                f"the answers in {self.folder} cannot be written: {error.strerror or error}",
                fix="free space or correct permissions; answers that are there are kept",
            ) from error

    def __iter__(self) -> Iterator[tuple[JsonObject, JsonObject]]:
        """Each request that has an answer, with it."""
        for file in sorted(self.folder.glob("*/*.json")):
            if (entry := _parsed(file.read_bytes())) is not None:
                yield entry["request"], entry["reply"]

    def _file(self, request: JsonObject) -> Path:
        key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        return self.folder / key[:2] / f"{key}.json"


@contextmanager
def _held(file: Path) -> Iterator[int]:
    import fcntl  # late: not on Windows, where campaigns do not run

    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _read(descriptor: int) -> JsonObject | None:
    with os.fdopen(os.dup(descriptor), "rb") as opened:
        entry = _parsed(opened.read())
    return None if entry is None else entry["reply"]


def _write(descriptor: int, entry: Mapping[str, JsonObject]) -> None:
    os.ftruncate(descriptor, 0)
    with os.fdopen(os.dup(descriptor), "r+b") as opened:
        opened.seek(0)
        opened.write(json.dumps(entry, ensure_ascii=False).encode())
    os.fsync(descriptor)


def _parsed(content: bytes) -> Mapping[str, JsonObject] | None:
    try:
        entry = json.loads(content)
    except ValueError:  # empty, or not written to its end
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("reply"), dict) else None
