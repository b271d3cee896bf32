"""Campaign files that come with the package, run by name: ``robustkd run quickstart``."""

from __future__ import annotations

import re
from importlib.resources import files

from robustkd.contracts import UsageError, suggestion


def names() -> list[str]:
    """The names of the campaigns that come with the package, sorted."""
    return sorted(item.name.removesuffix(".yaml") for item in files(__package__).iterdir() if item.name.endswith(".yaml"))


def read(name: str) -> str:
    """The text of a packaged campaign; ``UsageError`` when there is none of that name."""
    if name not in names():
        hint = suggestion(name, names()) or f"presets: {', '.join(names())}"
        raise UsageError(f"'{name}' is neither a campaign file nor a preset", fix=hint)
    return files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def summary(name: str) -> str:
    """What a packaged campaign says of itself: its ``description``."""
    found = re.search(r"^description: *(.+)$", read(name), re.MULTILINE)
    return found[1] if found else ""
