"""A store that an earlier version wrote is one of this version: nothing is done again, and all of it can be read.

``data/before-the-moves`` was written by commit 2f564b6, before the modules were moved into folders of one idea each;
``data/prompts-before-their-outcomes`` by commit 4464684, when the outcome of a request was stored in the columns of an image's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from robustkd import plugins
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.results.collect import collect
from robustkd.campaigns.store import identity, samples
from robustkd.campaigns.store.store import Store
from robustkd.targets import load_target
from robustkd.targets.code import _OWN, function_by_reference
from support.command_line import CommandLine
from support.toy_prompts import registered

FORMER = Path(__file__).parent / "data" / "before-the-moves"
FORMER_PROMPTS = FORMER.with_name("prompts-before-their-outcomes")
FORMER_CUPBOARD = "d18b670b9af9ea5fc17e5e27854b270271f1c6e86cc75908c77055401e8afe5d"
"""The SHA-256 of the example package's ``cupboard.py`` when that store was written."""
KINDS = {"standard": "defenses", "fgsm": "attacks", "calibration": "analyses"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The campaign and its results, with the plug-ins at the versions that the store notes.

    A plug-in whose version is raised is done again on purpose, and that is not what is asked here.
    """
    shutil.copytree(FORMER, tmp_path / "former")
    for meta in (tmp_path / "former" / "out").rglob("meta.json"):
        plugin = json.loads(meta.read_text())["identity"]["plugin"]
        monkeypatch.setattr(plugins.load(KINDS[plugin["kind"]], plugin["kind"]), "version", plugin["version"])  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path / "former")
    return tmp_path / "former"


@pytest.fixture
def robustkd(robustkd: CommandLine, folder: Path) -> Callable[..., tuple[str, str]]:
    """Call ``robustkd ARGS`` beside the campaign; it must succeed. Returns standard output and standard error."""

    def call(*arguments: str) -> tuple[str, str]:
        said = robustkd(*arguments)
        assert said.code == 0, said.err
        return said.out, said.err

    return call


def test_nothing_of_it_is_done_again_and_the_numbers_are_the_same(robustkd, folder: Path) -> None:
    written = json.loads((folder / "out" / "results.json").read_text())
    _, course = robustkd("run", "campaign.yaml", "--out", "out", "--no-track", "--workers", "0", "--device", "cpu")
    assert "0 cells to do, 3 finished before" in course
    now = json.loads((folder / "out" / "results.json").read_text())
    for of in ("defenses", "cells"):
        assert len(now[of]) == len(written[of]) > 0
        for row, former in zip(now[of], written[of], strict=True):
            assert {key: row[key] for key in former} == former  # a later version may add to a row


def test_it_is_reported_compared_and_verified(robustkd, folder: Path) -> None:
    robustkd("report", "campaign.yaml", "--out", "out")
    assert "87.5" in (folder / "out" / "report.md").read_text()
    compared, _ = robustkd("compare", "out", "out", "--json")
    assert {movement["difference"] for movement in json.loads(compared)["movements"]} == {0.0}
    robustkd("store", "verify", "campaign.yaml", "--out", "out")  # exit code 1 where something is damaged


def test_its_targets_are_loaded(folder: Path) -> None:
    cards = list((folder / "out").rglob("card.json"))
    assert len(cards) == 1
    target = load_target(cards[0].parent)
    assert target(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(("name", "place"), _OWN.items())
def test_the_code_that_cards_name_is_there(name: str, place: str) -> None:
    # ``origin.code`` of a saved target; a network is built of it before its weights are read. The names are those of the first cards.
    assert name.startswith(("robustkd.robustbench_bridge:", "robustkd.defenses.image.gal:", "robustkd.defenses.image.sla_sd:"))
    assert function_by_reference(place).__name__ == "build"


def test_requests_that_were_stored_as_images_are_read_as_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(FORMER_PROMPTS, tmp_path / "former")
    monkeypatch.chdir(tmp_path / "former")
    written = json.loads(Path("out/results.json").read_text())
    # A third party's source is part of its cells' identity, and the example's has changed since: here it counts as it was.
    hashed = identity.content_hash
    monkeypatch.setattr(identity, "content_hash", lambda file: FORMER_CUPBOARD if file.name == "cupboard.py" else hashed(file))
    with registered(tmp_path / "site"):
        plan, store = planning.build(spec.load("campaign.yaml")), Store(Path("out"))
        assert all(store.get(cell.id) for cell in plan.of("attack"))  # their identities are those of then
        now = json.loads(json.dumps(collect(plan, store, {}).to_dict()))
        for of in ("defenses", "cells"):
            assert len(now[of]) == len(written[of]) > 0
            for row, former in zip(now[of], written[of], strict=True):
                # The checks are others now, and what follows from them: their cells are planned again.
                numbers = former.keys() - {"checks", "verdict", "status", "error"}
                assert {key: row[key] for key in numbers} == {key: former[key] for key in numbers}
        assert (now["threat"], now["data"]) == (written["threat"], written["data"])
        for cell in plan.of("attack"):
            outcome, said = samples.read(entry := store.get(cell.id)).outcome, samples.transcripts(entry)  # type: ignore[arg-type]
            # Of four of twelve numbers the forgetful one knows nothing any more.
            assert int((~outcome.eligible).sum()) == (4 if cell.defense == "forgetful" else 0)
            assert not outcome.unjudged.any()
            assert outcome.attempts.tolist() == [one.attempts for one in said]
            first = next(iter(said[0].verdicts))
            gave = [one.verdicts[first] for one in said]
            assert (np.array(gave) & outcome.eligible).tolist() == outcome.success.tolist()
