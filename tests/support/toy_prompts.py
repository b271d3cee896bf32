"""Two toy worlds of prompts, registered as an installed package's plug-ins are: ``cupboard`` (text) and ``squares`` (images)."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from robustkd import plugins
from support.packages import write_metadata

EXAMPLE = Path(__file__).parents[1] / "plugin_example"
COLOURED_SQUARES = {
    "datasets": {"squares": "support.coloured_squares:Squares"},
    "defenses": {"unlearnt": "support.coloured_squares:Unlearnt"},
    "judges": {"is-the-colour": "support.coloured_squares:IsTheColour"},
    "targets": {"painter": "support.coloured_squares:Painter"},
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
        write_metadata(site, "robustkd-example", {group.removeprefix("robustkd."): uses for group, uses in example.items()})
        write_metadata(site, "coloured-squares", COLOURED_SQUARES)
        for folder in (EXAMPLE, site):
            patch.syspath_prepend(str(folder))
        plugins.refresh()
        yield
    plugins.refresh()
