"""Cells end faster than MLflow takes them, or its server is away for hours: what waits in the driver must not hold the cells' images."""

import gc
import threading

import pytest

from robustkd.application import session
from robustkd.campaigns.execution import profile
from robustkd.campaigns.execution.run import Observer
from robustkd.campaigns.file import spec
from robustkd.reporting.gallery import GalleryItem
from robustkd.tracking.run_store import RunStore
from support.campaigns import tiny_campaign
from support.tracked_campaign import client

ATTACKS = {f"pgd{steps}": f"{{kind: pgd, steps: {steps}}}" for steps in range(1, 9)}


class LooksAndLetsItBegin(Observer):
    """Looks at what is in memory when all cells have ended; only then does the store answer."""

    def __init__(self, answers: threading.Event) -> None:
        self.answers, self.images, self.left = answers, -1, len(ATTACKS)

    def succeeded(self, cell, result) -> None:
        self.left -= result is not None

    def finished(self, results) -> None:
        gc.collect()
        self.images = sum(isinstance(item, GalleryItem) for item in gc.get_objects())
        self.answers.set()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_what_waits_holds_no_images_and_all_of_them_arrive(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    answers, opened = threading.Event(), RunStore.__init__

    def late(store, *arguments):
        assert answers.wait(200)
        opened(store, *arguments)

    monkeypatch.setattr(RunStore, "__init__", late)
    gc.collect()
    before = sum(isinstance(item, GalleryItem) for item in gc.get_objects())
    loaded = spec.from_text(tiny_campaign("late", train=40, test=8, attacks=ATTACKS), "late.yaml", tmp_path)
    (tmp_path / "p.yaml").write_text("engine: {kind: inline}\ndevices: [cpu]\n")
    looks, out = LooksAndLetsItBegin(answers), tmp_path / "out"
    out.mkdir()
    session.run(loaded, out, profile.load(tmp_path / "p.yaml"), observers=[looks])
    assert looks.left == 0
    assert looks.images <= before  # other tests' may go meanwhile
    runs = client(out).search_runs(
        [e.experiment_id for e in client(out).search_experiments()], "tags.`robustkd.attack` LIKE 'pgd%'"
    )
    assert len(runs) == len(ATTACKS)
    for run in runs:
        assert [file.path for file in client(out).list_artifacts(run.info.run_id, "images")] == ["images/examples.png"]
