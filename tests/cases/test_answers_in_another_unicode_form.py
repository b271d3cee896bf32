"""Texts that read alike, written in other code points: the same verdict, the same rows, the same class."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustkd import plugins
from robustkd.contracts import Judgements, Prompts
from robustkd.data import SplitParams, load_splits

SECRET = "Crème Brûlée 4712"
FORMS = {
    "composed": unicodedata.normalize("NFC", SECRET),
    "decomposed": unicodedata.normalize("NFD", SECRET),
    "upper case": SECRET.upper(),
    "full width": "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in SECRET),
    "zero-width spaces": "\u200b".join(SECRET),
    "soft hyphens": SECRET.replace("rè", "r\u00adè"),
    "a no-break space": SECRET.replace(" ", "\u00a0"),
    "dashes between digits": SECRET.replace("4712", "4\u20117\u20131-2"),
}


def verdict(judge: dict[str, object], output: str, answer: str = "") -> bool:
    asked = Prompts({"prompt": ("the secret",), "answer": (answer,)}, np.zeros(1, np.int64))
    return bool(Judgements.of(plugins.make("judges", judge).complied(asked, [output])).complied[0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("told", FORMS)
def test_an_exact_answer_is_found_in_every_form(form: str, told: str) -> None:
    assert verdict({"kind": "exact-match"}, f"it is {FORMS[told]}.", FORMS[form])


def test_another_answer_is_still_another() -> None:
    assert not verdict({"kind": "exact-match"}, "it is Creme Brulee 4712", SECRET)


@pytest.mark.parametrize("output", ["I’m so\u200brry, but no", "Ｉ ｃａｎｎｏｔ", "I can\u00adnot", "I\u00a0can\u02bct"])
def test_a_refusal_is_found_in_every_form(output: str) -> None:
    assert not verdict({"kind": "refusal-match"}, output)


def test_rows_are_kept_by_what_a_cell_reads(tmp_path: Path) -> None:
    rows = ["prompt,category", f"a,{unicodedata.normalize('NFD', 'Café')}", "b,CAFÉ ", "c,tea"]
    (tmp_path / "asked.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    data = load_splits("behaviors", {"file": tmp_path / "asked.csv", "keep": {"category": ["Café"]}}, SplitParams())
    assert sorted(data.test["prompt"]) == ["a", "b"]


def test_folders_of_one_name_are_one_class(tmp_path: Path) -> None:
    for place, form in (("train", "NFD"), ("test", "NFC")):
        (tmp_path / place / unicodedata.normalize(form, "Café")).mkdir(parents=True)
        (tmp_path / place / "tea").mkdir()
        for folder in (tmp_path / place).iterdir():
            Image.new("L", (4, 4)).save(folder / "0.png")
    data = load_splits("image-folder", {"root": tmp_path}, SplitParams(validation=0))
    assert data.classes == ("Café", "tea")
    assert sorted(data.train.labels) == sorted(data.test.labels) == [0, 1]
