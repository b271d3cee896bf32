"""Prompt sets in the CSV format of the unlearning benchmarks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from robustkd import plugins
from robustkd.contracts import DataError, RawData
from robustkd.data import load_splits

CHURCH = 'case_number,prompt,evaluation_seed,evaluation_guidance\n5,"An old church, in fog.",11,7.5\n9,A church,12,7.5\n'
TRUCK = "evaluation_seed,prompt\n3,A truck\n"
SHARED = Path(os.environ.get("ROBUSTKD_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data")) / "prompts"


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def load(forbidden: dict[str, str], **params: Any) -> RawData:
    found: RawData = plugins.make("datasets", {"kind": "prompt-csv", "forbidden": forbidden} | params).load()
    return found


def test_rows_become_requests_with_their_concept_and_seed(tmp_path: Path) -> None:
    church, truck = write(tmp_path, "church.csv", CHURCH), write(tmp_path, "truck.csv", TRUCK)
    raw = load({"church": church}, benign={"garbage truck": truck})
    assert raw.classes == ("church", "garbage truck")
    assert raw.train is None
    assert raw.test.columns == {
        "number": ("5", "9"),
        "prompt": ("An old church, in fog.", "A church"),
        "seed": ("11", "12"),
        "guidance_scale": ("7.5", "7.5"),
        "concept": ("church", "church"),
    }
    assert raw.benign.columns["number"] == ("0",)
    assert (raw.test.labels.tolist(), raw.benign.labels.tolist()) == ([0, 0], [1])
    assert len(load_splits("prompt-csv", {"forbidden": {"church": church, "truck": truck}}).test) == 3


def test_pictures_are_found_by_case_number(tmp_path: Path) -> None:
    church = write(tmp_path, "church.csv", CHURCH)
    for name, grey in (("5.png", 10), ("9_0.png", 200)):
        Image.new("RGB", (12, 12), (grey, 0, 0)).save(tmp_path / name)
    images = load({"church": church}, images={"church": str(tmp_path)}, size=6).test.images
    assert images.shape == (2, 3, 6, 6)
    assert (images[:, 0] == np.array([10, 200])[:, None, None]).all()
    (tmp_path / "5.png").unlink()
    with pytest.raises(DataError, match=r"has no picture 5.png"):
        load({"church": church}, images={"church": str(tmp_path)})
    with pytest.raises(DataError, match="images of 'truck', which no file of requests is for"):
        load({"church": church}, images={"truck": str(tmp_path)})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,text\n1,a\n", "has no column 'prompt'"),
        ("prompt\na\n", "has no column 'evaluation_seed'"),
        ("prompt,evaluation_seed\n", "has no rows"),
        ("prompt,evaluation_seed\n,3\n", "request 1 is empty"),
        ('{"prompt": "a", "evaluation_seed": 3}\n{"prompt": "b", "evaluation_seed": 4}\n', "is JSON, not CSV"),
        ("prompt,evaluation_seed\na,3\nb,x7\n", "request 2 has the seed 'x7'"),
        ('prompt,evaluation_seed\n"a,3\n', "is no CSV in UTF-8"),
    ],
)
def test_a_file_that_is_no_prompt_set_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        load({"church": write(tmp_path, "bad.csv", text)})
    assert "bad.csv" in error.value.message
    assert error.value.fix
    with pytest.raises(DataError, match=r"gone.csv cannot be read"):
        load({"church": str(tmp_path / "gone.csv")})


def test_a_concept_is_forbidden_or_benign(tmp_path: Path) -> None:
    church = write(tmp_path, "church.csv", CHURCH)
    with pytest.raises(DataError, match="'church' is forbidden and benign"):
        load({"church": church}, benign={"church": church})


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason="the measuring data are not here")
def test_the_published_prompt_sets_are_read() -> None:
    names = ("church", "garbage_truck", "parachute", "tench", "vangogh")
    raw = load({name: str(SHARED / f"unlearndiffatk_{name}.csv") for name in names})
    assert np.bincount(raw.test.labels).tolist() == [50] * 5
    assert raw.test.columns["prompt"][0] == "Old stone church in countryside."
    assert set(raw.test.columns["guidance_scale"]) == {"7.5"}


def test_harmless_requests_may_have_real_pictures(tmp_path: Path) -> None:
    church, truck = write(tmp_path, "church.csv", CHURCH), write(tmp_path, "truck.csv", "prompt,evaluation_seed\na,1\n")
    Image.new("RGB", (6, 6), (50, 0, 0)).save(tmp_path / "0.png")
    raw = load({"church": church}, benign={"truck": truck}, images={"truck": str(tmp_path)}, size=6)
    assert raw.test.images is None
    assert raw.benign.images.shape == (1, 3, 6, 6)
    with pytest.raises(DataError, match="there are no images of 'bag'"):
        load({"church": church}, benign={"truck": truck, "bag": truck}, images={"truck": str(tmp_path)})
