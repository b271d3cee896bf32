"""Packages with plug-ins that are there for one test: their metadata is all that the registry reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write_metadata(site: Path, name: str, points: Mapping[str, Mapping[str, str]], version: str = "1.0") -> None:
    """Write what an installer leaves in ``site`` for a package that registers ``{group: {plug-in: "module:Class"}}``."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    sections = (
        f"[robustkd.{group}]\n" + "".join(f"{key} = {at}\n" for key, at in uses.items()) for group, uses in points.items()
    )
    (info / "entry_points.txt").write_text("\n".join(sections))
