"""Which files an ONNX network is made of: its weights may lie beside it, as ``torch.onnx.export`` writes them since torch 2.9."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

# The first half of an entry of a tensor's ``external_data`` in the file's protocol buffer: field 1 is the key, of 8 bytes; the tag
# of field 2, the value, follows. Read so, it needs neither the package onnx nor the network in memory twice.
_LOCATION = re.compile(re.escape(b"\n\x08location\x12"))


def onnx_files(file: Path) -> list[Path]:
    """Return ``file`` and the files that hold its weights, if they lie outside it.

    Args:
        file: an ONNX file. A missing one stands for itself alone.

    Returns:
        ``file`` first, then the others by name, also those that are missing. Places outside the folder of ``file`` are left
        out: no runtime reads them.
    """
    if not file.is_file():
        return [file]
    places = {file.parent / name for name in _locations(file.read_bytes())}
    folder = file.parent.resolve()
    return [file, *sorted(place for place in places if place.resolve().is_relative_to(folder))]


def _locations(content: bytes) -> Iterator[str]:
    for found in _LOCATION.finditer(content):
        start, length = _varint(content, found.end())
        yield content[start : start + length].decode(errors="replace")


def _varint(content: bytes, start: int) -> tuple[int, int]:
    """Where the bytes after a length begin, and that length: seven bits a byte, the lowest first."""
    length = shift = 0
    for place in range(start, min(start + 5, len(content))):
        length |= (content[place] & 0x7F) << shift
        shift += 7
        if content[place] < 0x80:
            return place + 1, length
    return start, 0
