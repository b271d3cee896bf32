"""What changed since the last run: asked of the viewer, after a campaign was really run again with something else."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from viewer.conftest import served

import robustkd
from robustkd.reporting.formatting import percent
from support.campaigns import tiny_campaign


def text(attacks, **more):
    return tiny_campaign(
        "weekly",
        train=300,
        test=30,
        defenses={"plain": "{kind: standard, model: tiny-cnn, epochs: 6}", **more},
        attacks=attacks,
    )


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """A campaign that was run ten days ago and now, with a stronger attack and another defense; and its results then and now."""
    folder = tmp_path_factory.mktemp("weekly") / "runs" / "weekly"
    first = robustkd.run(text({"fgsm": "{kind: fgsm}"}), folder, workers=0, device="cpu", track=False)
    robustkd.run(text({"fgsm": "{kind: fgsm}"}), folder, workers=0, device="cpu", track=False)  # changes nothing
    robust = "{kind: standard, model: tiny-cnn, epochs: 1}"
    attacks = {"fgsm": "{kind: fgsm}", "pgd": "{kind: pgd, steps: 20, restarts: 2}"}
    now = robustkd.run(text(attacks, later=robust), folder, workers=0, device="cpu", track=False)
    record = json.loads((folder / "record.json").read_text())
    for entry in record["runs"][:2]:
        entry["finished"] = (datetime.now(UTC) - timedelta(days=10)).isoformat(timespec="seconds")
    (folder / "record.json").write_text(json.dumps(record))
    return folder, first, now


def test_numbers_defenses_and_the_file(twice):
    folder, first, now = twice
    with served(folder.parent) as get:
        words = get("changes").page.words
    before, after = (next(item for item in side.defenses if item.defense == "plain") for side in (first, now))
    for side in (before, after):
        assert " ".join(percent(side.robust_accuracy).split()) in words
    assert f"{100 * (after.robust_accuracy - before.robust_accuracy):+.1f}" in words
    assert "later — " in words
    assert "new" in words
    assert "+ pgd: {kind: pgd, steps: 20, restarts: 2}" in words
    assert words.count("beside the run of") == 1  # the run that changed nothing is left out


def test_of_the_last_week_alone(twice):
    folder, _, _ = twice
    with served(folder.parent) as get:
        assert "the last seven days 1" in get("changes", since="week").page.words
        record = json.loads((folder / "record.json").read_text())
        record["runs"][-1]["finished"] = record["runs"][0]["finished"]
        (folder / "record.json").write_text(json.dumps(record))
        assert "Nothing changed in the last seven days" in get("changes", since="week").page.words


def test_a_record_of_a_former_version_or_of_a_stranger(twice, tmp_path):
    import shutil

    folder, _, _ = twice
    copy = shutil.copytree(folder, tmp_path / "runs" / "weekly")
    record = json.loads((copy / "record.json").read_text())
    del record["runs"][0]["numbers"]
    del record["runs"][1]["numbers"]
    record["runs"].insert(0, {"campaign": 3, "text": ["<script>"]})
    (copy / "record.json").write_text(json.dumps(record))
    with served(copy.parent) as get:
        words = get("changes").page.words
        assert "not noted" in words
        assert "+ pgd" in words
        (copy / "record.json").write_text('{"runs": 3}')
        assert "No campaign was run twice" in get("changes").page.words


def test_the_set_up_says_how_an_attack_was_run(twice):
    folder, _, _ = twice
    with served(folder.parent) as get:
        words = get("campaign", run="weekly").page.words
    assert "restarts 2" in words
    assert "epochs 6" in words


def test_a_sample_is_found_by_its_number(twice):
    folder, _, _ = twice
    with served(folder.parent) as get:
        page = get("samples", run="weekly", defense="plain", seed=0).page
        number = next(text for link, text in page.links.items() if link.startswith("/sample?"))
        found = get("samples", run="weekly", defense="plain", seed=0, index=number).page
        assert [text for link, text in found.links.items() if link.startswith("/sample?")] == [number]
        assert "No sample #999999" in get("samples", run="weekly", defense="plain", seed=0, index="999999").page.words
