"""A cell of 150,000 characters in a CSV, as long-context prompts are."""

from __future__ import annotations

import csv
from pathlib import Path

from robustkd.data import load_splits


def test_it_is_read_whole(tmp_path: Path) -> None:
    limit, prompt = csv.field_size_limit(), "word " * 30_000
    (tmp_path / "asked.csv").write_text(f'prompt,category\n"{prompt}",long\n', encoding="utf-8")
    assert load_splits("behaviors", {"file": tmp_path / "asked.csv"}).test["prompt"] == (prompt.strip(),)
    assert csv.field_size_limit() == limit  # the reader's own, of the whole process
