"""Campaign files that come with the package, run by name: ``robustkd run quickstart``."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from robustkd.contracts import UsageError, suggestion

NAMED = "name a campaign file, a results folder or its name below runs, or a preset (robustkd list presets)"
"""How a campaign is named."""


def names() -> list[str]:
    """The names of the campaigns that come with the package, sorted."""
    return sorted(item.name.removesuffix(".yaml") for item in files(__package__).iterdir() if item.name.endswith(".yaml"))


def read(name: str) -> str:
    """The text of a packaged campaign; ``UsageError`` when there is none of that name."""
    if name not in names():
        raise UsageError(f"'{name}' is neither a campaign file nor a preset", fix=meant(name) or NAMED)
    return files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def meant(reference: str) -> str | None:
    """The preset, the campaign file or the results that have nearly the name of a campaign that is not there, as a question."""
    folder = Path(reference).parent
    here = [str(path) for ending in ("*.yaml", "*.yml") for path in folder.glob(ending)]
    run = [path.parent.name for path in Path("runs").glob("*/campaign.yaml")]
    return suggestion(reference, [*names(), *here, *run])


def summary(name: str) -> str:
    """What a packaged campaign says of itself: its ``description``."""
    found = re.search(r"^description: *(.+)$", read(name), re.MULTILINE)
    return found[1] if found else ""
