"""A trained defense of another campaign, where a campaign file asks for a model: ``first.yaml#student``."""

from __future__ import annotations

from pathlib import Path

from robustkd.campaigns.file import yaml_source
from robustkd.campaigns.store.planned import trained_cell
from robustkd.contracts import UsageError

MARK, RUNS = "#", "runs"


def trained_folder(reference: str, home: Path) -> Path | None:
    """The folder of the trained target that ``campaign#defense`` or ``campaign#defense/seed`` names; None of another reference.

    Args:
        reference: the campaign is a file, a results folder, or the name of one below ``runs``.
        home: the folder of the campaign file that names it; where it is not found there, the working folder counts.

    Raises:
        UsageError: there is no such campaign, defense or seed.
        StoreError: it is not trained.
    """
    campaign, mark, defense = reference.rpartition(MARK)
    if not mark or not campaign:
        return None
    for base in (home, Path.cwd()):
        if (base / reference).exists():
            return None
        if folder := _results(base, campaign):
            return trained_cell(folder, defense, campaign)
    raise UsageError(
        f"there are no results of '{campaign}'",
        fix=f"robustkd run it first, or name its results folder: runs/first{MARK}{defense}",
    )


def _results(base: Path, campaign: str) -> Path | None:
    """The results folder of a campaign that is named from ``base``; None where there is none."""
    path = base / Path(campaign).expanduser()
    if path.is_file():
        return next((folder for top in (base, Path.cwd(), path.parent) if (folder := top / RUNS / _name(path)).is_dir()), None)
    return next((folder for folder in (path, base / RUNS / campaign) if folder.is_dir()), None)


def _name(file: Path) -> str:
    """What a campaign file calls itself."""
    data = yaml_source.parse(yaml_source.read(file), str(file)).data
    return str(data.get("name", "")) if isinstance(data, dict) else ""
