"""Code that builds a network, as a campaign or a saved target names it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath


@dataclass(frozen=True)
class Code:
    """A function by reference, and the arguments that it is called with.

    Attributes:
        reference: ``package.module:function``, ``path/to/file.py:function``, or ``path:network`` of a model file. A dotted name
            (``Net.load``) is looked up in parts.
        kwargs: None stands for any.
        folder: where ``package.module`` is looked for, before the working folder and the installed packages.
    """

    reference: str
    kwargs: Mapping[str, object] | None = None
    folder: Path | None = field(default=None, compare=False)

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in (self.kwargs or {}).items())
        return f"{self.reference}({arguments if len(arguments) <= 200 else arguments[:200] + '..'})"

    def covers(self, other: Code) -> bool:
        """Whether ``other`` is the same function with the same arguments; of a file the name counts, not the folder."""
        if _placeless(self.reference) != _placeless(other.reference):
            return False
        return self.kwargs is None or _plain(self.kwargs) == _plain(other.kwargs or {})


def _placeless(reference: str) -> str:
    location, _, function = reference.rpartition(":")
    return f"{PurePath(location).name}:{function}"  # of a module it is the module


def _plain(kwargs: Mapping[str, object]) -> str:
    """As JSON, which is what becomes of them in a card."""
    return json.dumps(kwargs, sort_keys=True, default=str)
