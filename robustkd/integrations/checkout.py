"""Whether a checkout has the plug-ins that were installed from it: pip reads ``entry_points/`` once, when it installs."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection
from configparser import ConfigParser
from pathlib import Path

FIX = "run `make install`, or `pip install --no-deps -e .`, in the checkout"
_FOLDER = Path(__file__).parents[2] / "entry_points"  # of a wheel there is none
_SHOWN = 3


def stale_install() -> str | None:
    """How the installed plug-ins of robustkd differ from those of ``entry_points/``; None where they are the same.

    It imports no plug-in.
    """
    if not (files := sorted(_FOLDER.glob("*.ini"))):
        return None
    listed = ConfigParser(delimiters=("=",), interpolation=None)
    listed.optionxform = str  # type: ignore[method-assign,assignment]  # the documented way to keep the case of names
    listed.read(files, encoding="utf-8")
    wanted = {(group, name, at) for group in listed.sections() for name, at in listed.items(group)}
    try:
        points = importlib.metadata.distribution("robustkd").entry_points
    except importlib.metadata.PackageNotFoundError:
        return "robustkd is not installed, so it has no plug-ins"
    present = {(point.group, point.name, point.value) for point in points if point.group in listed}
    missing, gone = ({name for _, name, _ in one - other} for one, other in ((wanted, present), (present, wanted)))
    told = [f"{verb} {_some(names)}" for verb, names in (("lacks", missing), ("still has", gone - missing)) if names]
    return f"the installation {' and '.join(told)}: entry_points/ has changed since" if told else None


def _some(names: Collection[str]) -> str:
    first = ", ".join(sorted(names)[:_SHOWN])
    return first + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
