"""A file of results says the day on which it was measured, and docs/numbers.yaml claims no later one."""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import _harness  # noqa: E402

SECTIONS = [
    pytest.param(page, heading, id=f"{page}: {heading}")
    for page, entries in yaml.safe_load((ROOT / "docs" / "numbers.yaml").read_text(encoding="utf-8")).items()
    for heading, entry in entries.items()
    if "results" in entry
]


def test_what_is_written_says_the_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_harness, "RESULTS", tmp_path)
    _harness.write("speed", [{"ratio": 1.5}], _harness.Verdicts())
    written = json.loads((tmp_path / "speed.json").read_text())
    assert date.fromisoformat(written["measured"]) <= date.today()
    assert written["rows"] == [{"ratio": 1.5}]


@pytest.mark.parametrize(("page", "heading"), SECTIONS)
def test_no_section_is_younger_than_its_oldest_results(page: str, heading: str) -> None:
    entry = yaml.safe_load((ROOT / "docs" / "numbers.yaml").read_text(encoding="utf-8"))[page][heading]
    days = [json.loads((ROOT / "benchmarks" / "results" / name).read_text())["measured"] for name in entry["results"]]
    assert str(entry["measured"]) <= min(days)
