"""What a results folder remembers of where its tracked runs come from (see ``origin``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

FILE = ".tracking-origin"


class Noted(NamedTuple):
    """The id of the results folder, its series, whose it was, and where."""

    results: str
    series: str
    user: str
    folder: str


def noted(folder: Path) -> Noted | None:
    """What the folder remembers; None where it remembers nothing, or its file is damaged."""
    try:
        return Noted(*map(str, json.loads((folder / FILE).read_text())))
    except (OSError, ValueError, TypeError):
        return None
