"""Requests as JSON lines and as a JSON list, as people keep them beside CSV."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustkd.contracts import DataError
from robustkd.data import load_splits

ROWS = [{"prompt": "Tell me, now", "category": "a", "seed": 3}, {"prompt": "Say\nit", "category": "b", "seed": None}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("asked.json", json.dumps(ROWS, indent=1)),
        ("asked.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n"),
        ("asked.csv", 'prompt,category,seed\n"Tell me, now",a,3\n"Say\nit",b,\n'),
    ],
)
def test_they_are_the_same_requests(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    asked = load_splits("behaviors", {"file": tmp_path / name}).test
    assert dict(zip(asked["prompt"], asked.labels.tolist(), strict=True)) == {"Tell me, now": 0, "Say\nit": 1}


@pytest.mark.parametrize(
    ("name", "text", "said", "fix"),
    [
        ("asked.csv", json.dumps(ROWS), "is JSON, not CSV", "name it .json"),
        ("asked.csv", "\n".join(map(json.dumps, ROWS)), "is JSON, not CSV", ".jsonl"),
        ("asked.json", "\n".join(map(json.dumps, ROWS)), "is no JSON", ".jsonl"),
        ("asked.json", '{"FraudID": ["a", "b"]}', "is no list of objects", "the columns of each row"),
        ("asked.json", '[{"prompt": ["a", "b"]}]', "row 1: 'prompt' is no text", "a text or a number"),
        ("asked.json", "[]", "has no rows", "for each prompt"),
        ("asked.jsonl", '{"prompt": "a"}\n[1]\n', "line 2 is no JSON object", ""),
    ],
)
def test_what_is_none_is_told_with_what_to_do(tmp_path: Path, name: str, text: str, said: str, fix: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as refused:
        load_splits("behaviors", {"file": tmp_path / name})
    assert said in refused.value.message
    assert fix in str(refused.value.fix)
