"""Prompts in the format of UnlearnDiffAtk's benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustkd.contracts import DataError
from robustkd.data import load_splits

CHURCH = (
    'case_number,prompt,evaluation_seed,evaluation_guidance\n0,Old stone church.,69922,7.5\n1,"Bells, ringing.",36416,7.5\n'
)
TENCH = "case_number,prompt,evaluation_seed,evaluation_guidance\n0,Tench in a pond.,16025,7.5\n"
BENIGN = "prompt,evaluation_seed,concept\nA dog.,5,dog\nA cat.,6,cat\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("church", CHURCH), ("tench", TENCH), ("benign", BENIGN)):
        (tmp_path / f"{name}.csv").write_text(text)
    return tmp_path


def test_each_file_is_a_concept(folder: Path) -> None:
    files = {"church": folder / "church.csv", "tench": folder / "tench.csv"}
    data = load_splits("concept-prompts", {"files": files, "benign": folder / "benign.csv"})
    assert data.train is None
    assert data.classes == ("church", "tench", "dog", "cat")
    asked = set(zip(data.test["prompt"], data.test["concept"], data.test["seed"], data.test.labels.tolist(), strict=True))
    assert asked == {
        ("Old stone church.", "church", "69922", 0),
        ("Bells, ringing.", "church", "36416", 0),
        ("Tench in a pond.", "tench", "16025", 1),
    }
    assert data.benign is not None
    assert data.benign.labels.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,seed\nA church.,1\n", "has no column 'evaluation_seed'"),
        ("prompt,evaluation_seed\nA church.,one\n", "row 1: the seed 'one' is no number"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(folder: Path, text: str, message: str) -> None:
    (folder / "church.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_splits("concept-prompts", {"files": {"church": folder / "church.csv"}})
