"""Two toy worlds of prompts, registered as an installed package's plug-ins are: ``cupboard`` (text) and ``squares`` (images)."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from robustkd import plugins

EXAMPLE = Path(__file__).parent / "plugin_example"
PAINTER = {
    "datasets": {"squares": "painter:Squares"},
    "defenses": {"unlearnt": "painter:Unlearnt"},
    "judges": {"is-the-colour": "painter:IsTheColour"},
    "targets": {"painter": "painter:Painter"},
}

CUPBOARD = """\
version: 1
name: cupboards
data: {name: cupboard}
threat: {attempts: 6}
defenses:
  open:          {kind: guarded-cupboard, looks_at: 0}
  short-sighted: {kind: guarded-cupboard, looks_at: 7}
  careful:       {kind: guarded-cupboard}
  forgetful:     {kind: guarded-cupboard, forgets: [attic]}
attacks:
  as-it-is:    {kind: extra-words, words: [please], count: 1}
  extra-words: {kind: extra-words}
  first-words: {kind: first-words}
gates:
  - {defense: careful, at_least: 0.1}
"""
SQUARES = """\
version: 1
name: squares
data: {name: squares}
threat: {attempts: 6}
defenses:
  unlearnt: {kind: unlearnt}
attacks:
  extra-words: {kind: extra-words, words: [nice, very, big], count: 2}
"""


@contextmanager
def registered(site: Path) -> Iterator[None]:
    """While it lasts, both worlds are among the plug-ins."""
    example = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]
    with pytest.MonkeyPatch.context() as patch:
        for name, points in (
            ("robustkd-example", example),
            ("painter", {f"robustkd.{group}": uses for group, uses in PAINTER.items()}),
        ):
            info = site / f"{name.replace('-', '_')}-1.0.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            lines = [f"[{group}]\n" + "".join(f"{key} = {at}\n" for key, at in uses.items()) for group, uses in points.items()]
            (info / "entry_points.txt").write_text("\n".join(lines))
        for folder in (EXAMPLE, Path(__file__).parent, site):
            patch.syspath_prepend(str(folder))
        _forget()
        yield
    _forget()


def _forget() -> None:
    plugins.refresh()
