"""Thousands of cells: what the tracker keeps of a run that has ended is its digest, and no run is wrong for that."""

import gc
import threading
import weakref

from mlflow import MlflowClient

from robustkd.tracking import MlflowTracker, mlflow_tracker
from robustkd.tracking.run_store import OpenRun, RunStore
from support.tracked_campaign import CELL, campaign, cell, client, defended, results, runs


def test_the_content_of_ended_runs_is_not_kept(folder):
    tracker, whole = MlflowTracker(folder, campaign()), []

    def look(book):
        gc.collect()
        whole.append(sum(issubclass(type(item), OpenRun) for item in gc.get_objects()))

    for seed in range(20):
        tracker.log_cell(cell(seed=seed))
    tracker._later(look)
    tracker.close(drop=False)
    assert tracker.problem is None
    assert whole[0] <= 2  # the parent's, and the one that has just been written
    assert len(runs(folder)) == 21


def test_a_verdict_that_comes_later_needs_no_look_at_the_run(folder, monkeypatch):
    tracker = MlflowTracker(folder, campaign())
    tracker.log_cell(cell())
    looks = []
    for name in ("get_run", "get_metric_history"):
        real = getattr(MlflowClient, name)
        monkeypatch.setattr(MlflowClient, name, lambda *arguments, _real=real: looks.append(arguments) or _real(*arguments))
    tracker.finish(results(cell(), defenses=(defended(),)))
    monkeypatch.undo()
    assert tracker.problem is None
    run = runs(folder)[CELL]
    assert looks == []
    assert run.data.tags["robustkd.verdict"] == "not credible"
    assert "not credible" in run.data.tags["mlflow.note.content"]
    for metric, count in (("robust_accuracy", 2), ("robust_accuracy_at_eps", 3)):
        assert len(client(folder).get_metric_history(run.info.run_id, metric)) == count


def test_a_verdict_that_goes_is_taken_away(folder):
    tracker = MlflowTracker(folder, campaign())
    tracker.finish(results(cell(), defenses=(defended(),)), force=True)
    tracker.finish(results(cell()), force=True)
    assert tracker.problem is None
    assert "robustkd.verdict" not in runs(folder)[CELL].data.tags


def test_other_numbers_of_an_ended_run_are_added_to_what_it_has(folder):
    tracker = MlflowTracker(folder, campaign())
    for accuracy in (0.6, 0.8, 0.8):
        tracker.log_cell(cell(robust_accuracy=accuracy))
    tracker.finish(results(cell()))
    assert tracker.problem is None
    run = runs(folder)[CELL]
    assert run.data.metrics["robust_accuracy"] == 0.8
    histories = {name: client(folder).get_metric_history(run.info.run_id, name) for name in ("robust_accuracy", "n", "eps")}
    assert {name: len(points) for name, points in histories.items()} == {"robust_accuracy": 3, "n": 2, "eps": 3}


def test_an_epoch_of_a_training_whose_run_has_ended(folder):
    outcome = results(cell(), defenses=(defended(),))
    MlflowTracker(folder, campaign()).finish(outcome)
    tracker = MlflowTracker(folder, campaign())
    tracker.log_progress("mtard", 0, 3, {"train_loss": 0.5})
    tracker.finish(outcome)
    assert tracker.problem is None
    worst = runs(folder)["mtard · worst case · seed 0"]
    points = client(folder).get_metric_history(worst.info.run_id, "train_loss")
    assert [(point.step, point.value) for point in points] == [(0, 2.0), (1, 1.0), (2, 0.666667), (3, 0.5)]


def test_few_results_wait_for_a_slow_store_and_all_of_them_arrive(folder, monkeypatch):
    monkeypatch.setattr(mlflow_tracker, "MOST_WAITING", 5, raising=False)
    answers, opened = threading.Event(), RunStore.__init__

    def late(store, *arguments):
        assert answers.wait(60)
        opened(store, *arguments)

    monkeypatch.setattr(RunStore, "__init__", late)
    tracker, waiting = MlflowTracker(folder, campaign()), []
    for seed in range(30):
        result = cell(seed=seed)
        waiting.append(weakref.ref(result))
        tracker.log_cell(result)
    del result
    gc.collect()
    held = sum(one() is not None for one in waiting)
    answers.set()
    tracker.finish(results(*(cell(seed=seed) for seed in range(30))))
    assert tracker.problem is None
    assert held <= 5
    assert len(runs(folder)) == 31
