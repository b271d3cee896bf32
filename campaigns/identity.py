"""What makes two cells the same: a hash over everything that changes their numbers, and over nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robustkd.contracts import Analysis, Attack, Defense, Judge, StoreError


def digest(*parts: Any) -> str:
    """A short hash (128 bits) of plain JSON values; key order does not matter."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def identified(kind: str, parts: Mapping[str, Any]) -> str:
    """The id of a cell: of its kind, and of the parts in their order; what they are called does not count."""
    return digest(kind, *parts.values())


def described(kind: str, plugin: Any) -> dict[str, Any]:
    """A plug-in's identity: its name, version and parameters.

    Files that it reads count by their content, not by where they lie.
    """
    params = plugin.params.model_dump(mode="json")
    reads = isinstance(plugin, Analysis | Attack | Defense | Judge)
    contents = {str(file): _content(file) for file in plugin.files()} if reads else {}
    if contents or isinstance(plugin, Defense):
        params = _replaced(params, contents) | {"files": sorted(contents.values())}
    return {"kind": kind, "version": plugin.version, "params": params}


def renamed(params: Any, names: dict[str, str]) -> Any:
    """``params`` with the names of other defenses replaced by what they stand for."""
    return _replaced(params, names)


def _replaced(value: Any, by: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(item, by) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, by) for item in value]
    return by.get(value, value) if isinstance(value, str) else value


def _content(file: Path) -> str:
    try:
        with file.open("rb") as opened:  # not at once: the weights of a large model are gigabytes
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error.strerror}", fix="correct the path in the campaign file") from error
