"""The page of papers says what is there and what is not: every name is a plug-in, every preset one that uses it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from robustkd import plugins
from robustkd.campaigns.file import presets, spec

PAGE = Path(__file__).parents[2] / "docs/papers.md"
ROW = re.compile(r"^\| (?P<paper>[^|]+?) \| (?P<names>[^|]*?) ?\| (?P<preset>[^|]*?) ?\| (?P<status>[^|]+?) \|$", re.MULTILINE)


class Row(NamedTuple):
    paper: str
    names: list[str]
    presets: list[str]
    status: str


def rows() -> list[Row]:
    quoted = re.compile(r"`([^`]+)`")
    found = [row for row in ROW.finditer(PAGE.read_text()) if row["paper"] != "Paper"]
    return [Row(row["paper"], quoted.findall(row["names"]), quoted.findall(row["preset"]), row["status"]) for row in found]


def test_the_page_has_the_papers() -> None:
    assert len(rows()) > 90
    assert len({row.paper for row in rows()}) == len(rows())


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.paper)
def test_a_row_is_true(row: Row) -> None:
    assert row.status in {"built", "reduced", "not yet"}
    if row.status == "not yet":
        assert not row.names
        assert not row.presets
        return
    known = {name for group in plugins.GROUPS for name in plugins.names(group)}
    assert row.names
    assert row.names[0] in known
    for preset in row.presets:
        assert preset in presets.names()
        assert re.search(
            rf"kind: {row.names[0]}\b", spec.load(preset).text
        )  # at the top, or within another plug-in's parameters
