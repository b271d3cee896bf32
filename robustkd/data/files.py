"""Where datasets are looked for, and how their files are downloaded."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from http.client import HTTPException
from pathlib import Path

from robustkd.contracts import DataError

_CHUNK = 1 << 20


def cache_folder() -> Path:
    """The user's own cache: ``$XDG_CACHE_HOME/robustkd``, or ``~/.cache/robustkd``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "robustkd"


def search_folders(name: str, root: Path | None) -> list[Path]:
    """Where the dataset called ``name`` may be: ``root`` alone when it is given, else the usual places.

    These are ``$ROBUSTKD_DATA/<name>``, ``~/.cache/robustkd/<name>`` and ``/usr/share/datasets/<name>`` (where Debian's
    packages put them). The first is where a download goes.
    """
    if root is not None:
        return [root]
    shared = os.environ.get("ROBUSTKD_DATA")
    return [*([Path(shared).expanduser() / name] if shared else []), cache_folder() / name, Path("/usr/share/datasets") / name]


def not_found(name: str, root: Path | None, fix: str) -> DataError:
    """The error that names every folder that was looked into."""
    places = " or ".join(str(place) for place in search_folders(name, root))
    return DataError(f"data '{name}' was not found in {places}", fix=fix)


def download(url: str, file: Path, md5: str) -> None:
    """Fetch ``url`` into ``file``, whole or not at all.

    The checksum is the published one. It guards against damage and stale mirrors; nothing that is read from these
    files is ever run.

    Raises:
        DataError: the server cannot be reached, or sent something else than the file.
    """
    state = hashlib.md5(usedforsecurity=False)
    # A name of this process's own: two that download the same file do not write into each other's.
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=60) as response, partial.open("wb") as out:
            while block := response.read(_CHUNK):
                state.update(block)
                out.write(block)
        if state.hexdigest() != md5:
            raise DataError(
                f"{url} is not the expected file (MD5 {state.hexdigest()}, published {md5})",
                fix=f"try again, or put the file into {file.parent} yourself",
            )
        partial.replace(file)
    except (OSError, HTTPException) as error:
        raise DataError(
            f"{url} cannot be downloaded to {file.parent}: {error}",
            fix=f"check the connection, or put the file into {file.parent} yourself",
        ) from error
    finally:
        partial.unlink(missing_ok=True)
