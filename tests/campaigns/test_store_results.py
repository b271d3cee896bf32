"""A finished campaign that is run again takes its results as they are, and only while they are."""

import json

import pytest

from robustkd.campaigns.execution import run as running
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import Observer
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.results.results_file import RESULTS
from robustkd.campaigns.store.store import Store
from robustkd.contracts import StoreError
from support.campaigns import tiny_campaign

TEXT = tiny_campaign("again", train=60, test=12)


@pytest.fixture
def again(tmp_path, monkeypatch):
    """Run the campaign once, and return a function that runs it again: its results, and whether they were made anew."""
    plan = planning.build(spec.from_text(TEXT, "test.yaml", None))
    first = running.run(plan, tmp_path, InlineEngine(), device="cpu")
    collect, made = running.collect, []

    def counted(*arguments):
        made.append(1)
        return collect(*arguments)

    monkeypatch.setattr(running, "collect", counted)

    def call():
        made.clear()
        assert running.run(plan, tmp_path, InlineEngine(), device="cpu") == first
        return bool(made)

    call.file, call.plan, call.store = tmp_path / RESULTS, plan, Store(tmp_path)
    return call


def test_nothing_is_scored_when_nothing_changed(again):
    before = again.file.stat().st_mtime_ns
    assert not again()
    assert again.file.stat().st_mtime_ns == before


def test_a_file_that_was_touched_is_made_anew(again):
    raw = json.loads(again.file.read_text())
    raw["cells"][0]["robust_accuracy"] = 1.0
    again.file.write_text(json.dumps(raw))
    assert again()
    assert not again()
    again.file.unlink()
    assert again()


def test_a_cell_that_is_done_again_is_scored_again(again):
    (cell,) = again.plan.of("attack")
    (again.store.path(cell.id) / "samples.parquet").unlink()
    results = running.run(again.plan, again.store.folder, InlineEngine(), device="cpu")
    assert [cell.status for cell in results.cells] == ["done"]
    assert json.loads(again.file.read_text())["cells"][0]["wall_seconds"] == results.cells[0].wall_seconds


class During(Observer):
    """Does something when the first attack begins, and remembers what fails."""

    def __init__(self, deed):
        self.deed, self.lost = deed, []

    def started(self, cell):
        if cell.kind == "attack":
            self.deed()

    def failed(self, cell, failure):
        self.lost.append((cell.kind, failure.error))


def test_a_run_on_a_disk_that_fills_up_says_so_and_goes_on_when_there_is_room(small_disk):
    plan = planning.build(spec.from_text(TEXT, "test.yaml", None))
    filler = small_disk / "filler"

    def fill():
        with pytest.raises(OSError, match="No space left"), filler.open("wb") as file:
            file.write(bytes(2 * 2**20))

    listener = During(fill)
    with pytest.raises(StoreError, match="No space left on device"):  # nor is there room for results.json
        running.run(plan, small_disk / "out", InlineEngine(), device="cpu", observers=[listener])
    ((kind, error),) = listener.lost
    assert kind == "attack"
    assert "No space left on device" in error
    left = [path for path in (small_disk / "out").rglob("*") if path.is_file()]
    assert {path.name for path in left} == {
        "weights.safetensors",
        "card.json",
        "meta.json",
        ".lock",
        "plan.json",
        "campaign.yaml",
    }
    filler.unlink()
    listener = During(lambda: None)
    assert not running.run(plan, small_disk / "out", InlineEngine(), device="cpu", observers=[listener]).incomplete
    assert listener.lost == []


def test_a_run_sweeps_before_it_ends(tmp_path):
    plan = planning.build(spec.from_text(TEXT, "test.yaml", None))
    dead = tmp_path / ".incoming" / "of-a-dead-child"
    running.run(plan, tmp_path, InlineEngine(), device="cpu", observers=[During(dead.mkdir)])
    assert not dead.exists()
