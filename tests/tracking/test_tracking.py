"""Real MLflow on SQLite throughout: what matters is what its store, and nothing of ours, says afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from robustkd.cli.ui import command as ui
from robustkd.contracts import UsageError
from robustkd.contracts.analysis import Table
from robustkd.reporting import GalleryItem
from robustkd.scoring.bracket import Bracket
from robustkd.scoring.remedy import Remedy
from robustkd.scoring.results import CellResult
from robustkd.scoring.summaries import Environment
from robustkd.tracking import MlflowTracker, TrackingError, promote, rebuild, tracking_uri, ui_command
from robustkd.tracking.descriptions import MAX_NOTE, truncate
from robustkd.tracking.images import MAX_IMAGES, save_sheet
from robustkd.tracking.location import read_mark
from robustkd.tracking.records import RunKey, cell_record
from robustkd.tracking.run_store import RunStore
from support.tracked_campaign import (
    CELL,
    DATA,
    PARENT,
    SECRET,
    WORST,
    campaign,
    cell,
    client,
    defended,
    failed,
    gallery,
    results,
    runs,
    track,
)  # fmt: skip


def test_what_a_campaign_looks_like(folder):
    outcome = results(cell(), cell(attack="cw", median_norm=0.03), defenses=(defended(),))
    (folder / "report.html").write_text("<h1>hello</h1>")
    track(folder, outcome, artifacts=[folder / "report.html", folder / "gone.png"])
    found = runs(folder)
    assert set(found) == {CELL, "mtard × cw · seed 0", WORST, PARENT}
    parent, child, worst = found[PARENT], found[CELL], found[WORST]
    store = client(folder)

    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert child.data.tags["mlflow.parentRunId"] == worst.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert "mlflow.parentRunId" not in parent.data.tags
    assert child.data.params == {
        "defense": "mtard", "attack": "pgd", "seed": "0", "norm": "linf", "eps": "0.1", "attack.kind": "pgd", "attack.steps": "20",
        "defense.kind": "mtard", "defense.epochs": "4", "defense.inner.kind": "pgd", "defense.inner.steps": "7",
        "defense.teachers": '["a", "b"]',
    }  # fmt: skip
    assert child.data.metrics["robust_accuracy"] == 0.8
    assert child.data.metrics["attack_success_rate"] == 0.111111
    assert child.data.metrics["forward_passes"] == 2100
    assert (worst.data.metrics["w_robust"], worst.data.metrics["nrr"]) == (0.825, 0.818182)
    assert child.info.end_time - child.info.start_time == 1500
    assert worst.info.end_time - worst.info.start_time == 7000
    curve = {metric: store.get_metric_history(child.info.run_id, metric) for metric in ("eps", "robust_accuracy_at_eps")}
    assert [(point.step, point.value) for point in curve["eps"]] == [(0, 0.0), (1, 0.05), (2, 0.1)]
    assert [(point.step, point.value) for point in curve["robust_accuracy_at_eps"]] == [(0, 0.9), (1, 0.85), (2, 0.8)]
    losses = store.get_metric_history(worst.info.run_id, "train_loss")
    assert [(point.step, point.value) for point in losses] == [(0, 2.0), (1, 1.0), (2, 0.666667)]
    assert worst.data.params["attack"] == "worst case"

    assert {file.path for file in store.list_artifacts(parent.info.run_id)} == {"campaign.yaml", "cells.json", "report.html"}
    table = json.loads((folder / "mlartifacts" / parent.info.run_id / "artifacts" / "cells.json").read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["attack"], row["verdict"]) for row in rows] == [
        (attack, "not credible") for attack in ("worst case", "pgd", "cw")
    ]


def test_no_metric_is_drawn_as_a_single_bar(folder):
    between = Bracket(100, 0.6, 0.5, 0.69, 0.75, 0, 15, ["intervals"])
    remedy = Remedy([{"kind": "square"}], 0.7, 0.6, 0.78, 5, 100, left=[0.7])
    table = Table("calibration", ["all"], ["ece"], [[0.1]], metrics={"ece": 0.1})
    defense = defended(bracket=between, remedy=remedy, analyses={"calibration": table})
    track(folder, results(cell(), cell(attack="cw", curve=[], median_norm=0.03), defenses=(defense,)))
    store = client(folder)
    for run in runs(folder, "").values():
        for metric in run.data.metrics:
            last = max(point.step for point in store.get_metric_history(run.info.run_id, metric))
            assert last >= 1, (run.info.run_name, metric)  # MLflow 3.17: one without a step after 0 is a bar chart
    before = [point for point in store.get_metric_history(runs(folder)[CELL].info.run_id, "robust_accuracy") if point.step == 0]
    assert [point.value for point in before] == [0.9]  # what is right without an attack


def test_usefulness_is_not_what_requests_withstand_before_an_attack(folder):
    track(folder, results(cell(norm="prompt", eps=20.0, curve=[]), defenses=()))
    points = client(folder).get_metric_history(runs(folder)[CELL].info.run_id, "robust_accuracy")
    assert [(point.step, point.value) for point in points] == [(1, 0.8)]


def test_what_is_certified_is_a_metric_and_in_the_notes(folder):
    between = Bracket(100, 0.6, 0.5, 0.69, 0.75, 0, 15, ["intervals", "exact"])
    track(folder, results(cell(), defenses=(defended(bracket=between),)))
    found = runs(folder)
    names = ("certified_accuracy", "certified_ci_low", "certified_ci_high", "attacked_accuracy")
    assert [found[WORST].data.metrics[name] for name in names] == [0.6, 0.5, 0.69, 0.75]
    note, campaign_note = (" ".join(found[name].data.tags["mlflow.note.content"].split()) for name in (WORST, PARENT))
    assert "Certified to attacked, by intervals, exact: **60.0 to 75.0 %**; 15 of 100 open." in note
    assert "certified to attacked" in campaign_note
    assert "60.0 to 75.0 %" in campaign_note


def test_the_verdict_stands_beside_the_number_everywhere(folder):
    outcome = results(cell(), defenses=(defended(), defended("pgd-at", verdict="credible", checks=[])))
    track(folder, outcome)
    found = runs(folder)
    assert found[CELL].data.tags["robustkd.verdict"] == found[WORST].data.tags["robustkd.verdict"] == "not credible"
    note = found[WORST].data.tags["mlflow.note.content"]
    assert "not credible" in note.splitlines()[0]
    assert "75.0" in note.splitlines()[0]
    assert "93 % of the gradients are zero" in note
    assert "attack the logits" in note
    assert "not credible" in found[CELL].data.tags["mlflow.note.content"]
    summary = found[PARENT].data.tags["mlflow.note.content"]
    assert next(line for line in summary.splitlines() if line.startswith("| mtard")).count("not credible") == 1
    assert found[WORST].data.tags["mlflow.runColor"] != found["pgd-at · worst case · seed 0"].data.tags["mlflow.runColor"]


def test_logging_again_changes_nothing(folder):
    outcome = results(cell(), failed("mtard", "cw", 0, "out of memory"), defenses=(defended(),))
    tracker = MlflowTracker(folder, campaign())
    for epoch in range(3):
        tracker.log_progress(
            "mtard", 0, epoch, {key: value for key, value in defended().history[epoch].items() if key != "epoch"}
        )
    for _ in range(2):
        tracker.log_cell(outcome.cells[0])
    tracker.finish(outcome)
    assert tracker.problem is None
    first = (folder / "mlflow.db").read_bytes()
    track(folder, outcome)
    track(folder, outcome)
    assert len(runs(folder)) == 4
    for name, metric in ((CELL, "robust_accuracy_at_eps"), (WORST, "train_loss"), (WORST, "eps")):
        assert len(client(folder).get_metric_history(runs(folder)[name].info.run_id, metric)) == 3
    assert runs(folder)[PARENT].info.status == "FAILED"
    assert len(first) == (folder / "mlflow.db").stat().st_size


def test_a_finished_campaign_does_not_even_open_mlflow(folder, monkeypatch):
    outcome = results(cell(), defenses=(defended(),))
    track(folder, outcome)
    monkeypatch.setattr("robustkd.tracking.run_store.RunStore.__init__", lambda *_: pytest.fail("opened"))
    again = MlflowTracker(folder, campaign(), warn=pytest.fail)
    again.finish(outcome)
    again.log_cell(cell())  # after finish: a new thread, and no exception
    again.close()


def test_the_mark_of_a_deleted_store_does_not_count(folder):
    track(folder, results(cell()))
    assert read_mark(folder) is not None
    (folder / "mlflow.db").unlink()
    assert read_mark(folder) is None


def test_what_a_killed_driver_left_is_completed(folder):
    book = RunStore(tracking_uri(folder), folder, campaign())
    record = cell_record(campaign(), cell())

    def killed(book: RunStore, run_id: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        book.put(RunKey("mtard", "pgd", 0), record, killed)
    # Killed once more, between the metrics and the end.
    book.client.set_terminated = lambda *_: killed(book, "")
    with pytest.raises(KeyboardInterrupt):
        book.put(RunKey("mtard", "pgd", 0), record)
    before = runs(folder)
    assert {before[name].info.status for name in (CELL, PARENT)} == {"RUNNING"}
    track(folder, results(cell()))
    after = runs(folder)
    assert set(after) == {CELL, PARENT}
    assert after[CELL].info.run_id == before[CELL].info.run_id
    assert {run.info.status for run in after.values()} == {"FINISHED"}
    assert len(client(folder).get_metric_history(after[CELL].info.run_id, "robust_accuracy_at_eps")) == 3


def test_a_failed_cell_says_why_and_can_succeed_later(folder):
    track(folder, results(failed("mtard", "pgd", 0, "CUDA out of memory\n  fix: lower batch_size")))
    run = runs(folder)[CELL]
    assert run.info.status == "FAILED"
    assert "out of memory" in run.data.tags["robustkd.error"]
    assert "lower batch_size" in run.data.tags["mlflow.note.content"]
    assert run.data.metrics == {}
    assert runs(folder)[PARENT].info.status == "FAILED"
    assert "without a result" in runs(folder)[PARENT].data.tags["mlflow.note.content"]

    track(folder, results(cell()))  # its id changed too: a blocked cell has none yet
    again = runs(folder)[CELL]
    assert again.info.run_id == run.info.run_id
    assert again.info.status == runs(folder)[PARENT].info.status == "FINISHED"
    assert "robustkd.error" not in again.data.tags
    assert again.data.tags["robustkd.cell_id"] == "id-mtard-pgd-0"


def test_pending_cells_are_left_out_and_new_numbers_replace_old_ones(folder):
    track(folder, results(cell(), replace(cell(attack="cw"), status="pending")))
    assert set(runs(folder)) == {CELL, PARENT}
    for accuracy in (0.6, 0.8):
        track(folder, results(cell(robust_accuracy=accuracy)))
        assert runs(folder)[CELL].data.metrics["robust_accuracy"] == accuracy


def test_what_was_deleted_in_mlflow_comes_back(folder):
    track(folder, results(cell()))
    store = client(folder)
    store.delete_experiment(store.get_experiment_by_name("quick").experiment_id)
    track(folder, results(cell()))
    assert set(runs(folder)) == {CELL, PARENT}
    store.delete_run(runs(folder)[CELL].info.run_id)
    assert set(runs(folder)) == {PARENT}
    track(folder, results(cell()))
    assert set(runs(folder)) == {CELL, PARENT}


def test_another_plan_gets_another_parent(folder):
    track(folder, results(cell()))
    track(folder, results(cell()), campaign("plan-2"))
    store = client(folder)
    found = store.search_runs([store.get_experiment_by_name("quick").experiment_id])
    assert len(found) == 4
    assert len({run.data.tags.get("mlflow.parentRunId") for run in found}) == 3


def test_infinite_and_missing_metrics_are_not_logged(folder):
    worst = defended(history=[{"train_loss": float("nan"), "bad (name)@1": 1.0}], curve=[])
    track(folder, results(cell(median_norm=float("inf"), ci_low=float("nan"), attack_success_rate=None), defenses=(worst,)))
    metrics = runs(folder)[CELL].data.metrics
    assert not {"median_norm", "ci_low", "attack_success_rate"} & set(metrics)
    assert {"bad _name__1"} == {name for name in runs(folder)[WORST].data.metrics if "bad" in name or "loss" in name}
    assert all(np.isfinite(value) for value in metrics.values())


def test_long_and_many_params(folder):
    settings = {"prompt": "x" * 7000, "odd*key": 1} | {f"p{i}": i for i in range(250)}
    plan = campaign(attacks={"pgd": {"kind": "pgd", **settings}})
    track(folder, results(cell(), defenses=(defended(history=[{"train_loss": float(i)} for i in range(1700)]),)), plan)
    run = runs(folder)[CELL]
    assert run.data.params["attack.p249"] == "249"
    assert run.data.params["attack.odd_key"] == "1"
    assert len(run.data.params["attack.prompt"]) < 300
    whole = client(folder).download_artifacts(run.info.run_id, "params/attack.prompt.txt")
    assert Path(whole).read_text() == "x" * 7000
    assert len(client(folder).get_metric_history(runs(folder)[WORST].info.run_id, "train_loss")) == 1700


def test_images(folder, tmp_path):
    track(folder, results(cell()), gallery=[*gallery(40), *gallery(3, "cw")])
    run = runs(folder)[CELL]
    files = client(folder).list_artifacts(run.info.run_id, "images")
    assert [file.path for file in files] == ["images/examples.png"]
    from PIL import Image

    save_sheet(gallery(MAX_IMAGES), tmp_path / "full.png")
    save_sheet(gallery(1), tmp_path / "one.png")
    sizes = [
        Image.open(path).size
        for path in (client(folder).download_artifacts(run.info.run_id, files[0].path), tmp_path / "full.png")
    ]
    assert sizes[0] == sizes[1]  # 40 were offered, 16 are shown
    assert np.unique(np.asarray(Image.open(tmp_path / "one.png"))[:112, :112, 0]).size == 64  # enlarged without new values


def test_images_are_drawn_once(folder):
    asked: list[str] = []

    def draw(done: CellResult) -> list[GalleryItem]:
        asked.append(done.attack)
        return gallery(2, done.attack) if done.attack == "pgd" else []

    outcome = results(cell(), cell(attack="cw"), failed("mtard", "fgsm", 0, "no"), defenses=(defended(),))
    tracker = MlflowTracker(folder, campaign())
    tracker.log_cell(outcome.cells[0], draw)
    tracker.finish(outcome, gallery=draw)  # the run of pgd gets its verdict now, and keeps its images
    track(folder, outcome, gallery=draw)
    assert asked == ["pgd", "cw"]
    assert runs(folder)[CELL].data.tags["robustkd.verdict"] == "not credible"
    assert client(folder).list_artifacts(runs(folder)[CELL].info.run_id, "images")


def test_the_data_and_their_whole_hash(folder):
    track(folder, results(cell(), defenses=(defended(),)))
    for name in (CELL, WORST, PARENT):
        (used,) = client(folder).get_run(runs(folder)[name].info.run_id).inputs.dataset_inputs
        assert used.dataset.name == "digits"
        assert DATA.digest.startswith(used.dataset.digest)
        assert {tag.key: tag.value for tag in used.tags}["robustkd.digest"] == DATA.digest


def test_a_trained_target_is_a_model_that_loads_again(folder, monkeypatch, request):
    import torch

    from robustkd.targets import ClassifierTarget, load_target, save_target
    from robustkd.targets.files import CARD, WEIGHTS
    from robustkd.tracking import models

    assert (models.CARD, models.WEIGHTS) == (CARD, WEIGHTS)
    torch.manual_seed(0)
    target = ClassifierTarget.from_model("tiny-cnn", input_shape=(1, 8, 8), num_classes=10)
    target.module.eval()
    trained = folder / "trained"
    trained.mkdir()
    save_target(target, trained)
    (trained / "meta.json").write_text("{}")
    outcome = results(cell(), defenses=(defended(),))
    track(folder, outcome)  # its metrics are there before the model is
    for plan in ("plan-1", "plan-1", "plan-2"):
        track(folder, outcome, campaign(plan), targets={("mtard", 0): trained})

    store = client(folder)
    (model,) = store.search_logged_models([store.get_experiment_by_name("quick").experiment_id])
    assert model.status == "READY"
    assert model.tags["robustkd.target_hash"] == "hash-mtard-0"
    assert {metric.key: metric.value for metric in model.metrics}["robust_accuracy"] == 0.75
    for name in (WORST,):
        found = store.search_runs([model.experiment_id], f"attributes.run_name = '{name}'")
        assert [[output.model_id for output in run.outputs.model_outputs] for run in found] == 2 * [[model.model_id]]

    import mlflow.artifacts
    import mlflow.pyfunc

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(folder))  # MLflow sets it, too, and nobody would take it back
    mlflow.set_tracking_uri(tracking_uri(folder))
    request.addfinalizer(lambda: mlflow.set_tracking_uri(None))
    uri = f"models:/{model.model_id}"
    downloaded = Path(mlflow.artifacts.download_artifacts(uri))
    assert {path.name for path in downloaded.iterdir()} >= {WEIGHTS, CARD, "MLmodel"}
    assert not [path for path in downloaded.rglob("*") if path.suffix in (".pkl", ".pt", ".pth")]
    images = torch.rand(4, 1, 8, 8)
    expected = target(images).detach()
    assert torch.equal(load_target(downloaded)(images), expected)
    served = mlflow.pyfunc.load_model(uri).predict(images.numpy())
    np.testing.assert_array_equal(served, expected.numpy())

    assert model.tags["robustkd.verdict"] == "not credible"
    with pytest.raises(UsageError, match=r"not credible \(zero-gradient\)"):
        promote(folder, outcome, "mtard", 0)
    with pytest.raises(UsageError, match="did you mean 'mtard'"):
        promote(folder, outcome, "mtrd", 0)
    with pytest.raises(UsageError, match="its seeds: 0"):
        promote(folder, outcome, "mtard", 1)
    names = [promote(folder, outcome, "mtard", objections=["a gate failed"], force=True) for _ in range(2)]
    assert names == ["models:/quick-mtard@champion"] * 2
    (version,) = store.search_model_versions("name = 'quick-mtard'")
    assert version.tags["robustkd.verdict"] == "not credible"
    assert version.tags["robustkd.overridden"].endswith("(zero-gradient); a gate failed")
    sound = replace(outcome, defenses=[defended(verdict="credible", checks=[])])
    assert promote(folder, sound, "mtard", gates=["gate passed: 75 %"]) == names[0]
    (version,) = store.search_model_versions("name = 'quick-mtard'")
    assert "robustkd.overridden" not in version.tags
    card = version.description
    told = ("L∞ ≤ 0.1", "75.0", "65.0 to 82.0", "credible", "gate passed", "pgd 80.0", "100, digits, sha256 0123456789abcdef")
    assert [text for text in told if text not in card] == []
    assert torch.equal(load_target(Path(mlflow.artifacts.download_artifacts(names[0])))(images), expected)


def test_no_secret_is_logged(folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", SECRET)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    error = f"cannot reach postgresql://bob:{SECRET}@db/x?password={SECRET}"
    plan = campaign(attacks={"pgd": {"weights": f"https://{SECRET}@host/w.pt"}})
    outcome = results(cell(), failed("mtard", "cw", 0, error), defenses=(defended(error=error),))
    track(folder, outcome, replace(plan, text=f"url: {error}"), gallery=gallery(2))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 4
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_a_broken_store_is_reported_once_and_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"nosuchdatabase://bob:{SECRET}@host/db")
    warnings: list[str] = []
    tracker = MlflowTracker(tmp_path, campaign(), warn=warnings.append)
    tracker.log_progress("mtard", 0, 0, {"train_loss": 1.0})
    tracker.log_cell(cell())
    tracker.finish(results(cell()))
    assert len(warnings) == 1
    assert "robustkd track" in warnings[0]
    assert SECRET not in warnings[0]
    with pytest.raises(TrackingError) as caught:
        rebuild(tmp_path, campaign(), results(cell()))
    assert SECRET not in str(caught.value)


def test_rebuild_is_the_same_as_logging_live(folder):
    rebuild(folder, campaign(), results(cell(), defenses=(defended(),)))
    assert set(runs(folder)) == {CELL, WORST, PARENT}


def _artifacts(folder):
    return sorted(str(file.relative_to(folder)) for file in (folder / "mlartifacts").rglob("*") if file.is_file())


def test_a_moved_folder_tracks_on(folder, tmp_path):
    track(folder, results(cell()))
    here = folder.rename(tmp_path / "else where")
    rebuild(here, campaign(), results(cell(), cell(attack="cw")))
    assert not list(folder.rglob("*"))
    found = runs(here)
    assert "mtard × cw · seed 0" in found
    store = client(here)
    for run in found.values():
        assert run.info.artifact_uri.startswith((here / "mlartifacts").as_uri())
        store.list_artifacts(run.info.run_id)
    assert {file.path for file in store.list_artifacts(found[PARENT].info.run_id)} >= {"campaign.yaml", "cells.json"}


def test_a_copied_folder_leaves_the_original_alone(folder, tmp_path):
    track(folder, results(cell()))
    copied = tmp_path / "copy"
    shutil.copytree(folder, copied)
    before = _artifacts(folder)
    track(copied, results(cell(robust_accuracy=0.5)), campaign("plan-2"))
    assert _artifacts(folder) == before
    assert len(_artifacts(copied)) > len(before)
    assert {run.data.metrics["robust_accuracy"] for name, run in runs(folder).items() if name == CELL} == {0.8}


def test_a_folder_whose_files_are_gone_says_so(folder, tmp_path):
    track(folder, results(cell()))
    shutil.rmtree(folder / "mlartifacts")
    with pytest.raises(TrackingError, match="which is gone"):
        rebuild(folder, campaign(), results(cell()))


def test_the_experiment_opens_on_tables_with_the_verdict(folder):
    track(folder, results(cell()))
    tags = client(folder).get_experiment_by_name("quick").tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert "Does this defense hold?" in tags["mlflow.note.content"].splitlines()[0]
    view = json.loads(json.loads(tags["mlflow.sharedViewState.robustkd-defenses"])["state"])
    assert "plan-1" in view["searchFilter"]
    assert view["columnOrder"][1:3] == ["metrics.`robust_accuracy`", "tags.`robustkd.verdict`"]
    assert "viewStateShareKey=robustkd-defenses" in ui_command(folder).url
    assert runs(folder, view["searchFilter"]) == {}  # the query is one that MLflow understands


def test_the_pages_are_of_this_machine_and_how_others_may_see_them_is_said():
    said = " ".join(CliRunner().invoke(ui, ["--help"]).output.split())
    assert "answers on 127.0.0.1 alone" in said
    assert "ssh -L 5000:127.0.0.1:5000 MACHINE" in said


def test_the_command_of_the_pages(folder, tmp_path, monkeypatch):
    command = ui_command(folder, 5123)
    served = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", "5123", "--workers", "1", "--app-name", "robustkd"]
    assert command.argv[1:] == served
    assert command.env["MLFLOW_BACKEND_STORE_URI"] == tracking_uri(folder)
    with pytest.raises(UsageError, match="robustkd track"):
        ui_command(tmp_path / "nothing")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://bob:{SECRET}@mlflow.team")
    with pytest.raises(UsageError, match=r"open http://mlflow.team/#/experiments") as caught:
        ui_command(folder)
    assert SECRET not in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://bob:{SECRET}@db/mlflow")
    assert SECRET not in " ".join(ui_command(folder).argv)


def test_a_note_is_cut_at_a_line():
    long = truncate("\n".join(f"line {i}" for i in range(4000)))
    assert len(long) <= MAX_NOTE
    assert long.split("\n\n")[-1].startswith("… (cut here")


def test_importing_is_light():
    code = "import sys, robustkd.tracking; print({'mlflow', 'torch', 'pandas', 'matplotlib', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert done.stdout.strip() == "set()"


def test_how_a_defense_moved(folder):
    def executed(plan: str, day: int, accuracy: float, **more) -> None:
        outcome = results(cell(), defenses=(defended(robust_accuracy=accuracy, **more),))
        finished = Environment(finished=f"2026-11-{day:02d}T08:00:00+00:00")
        track(folder, replace(outcome, environment=finished), campaign(plan))

    executed("plan-1", 9, 0.75)
    executed("plan-2", 16, 0.70, verdict="credible")
    executed("plan-2", 16, 0.70, verdict="credible")  # tracked again: no new step
    executed("plan-1", 9, 0.75)  # the older one again: its own step
    executed("plan-3", 23, 0.78, verdict="credible")
    store = client(folder)
    (moved,) = runs(folder, "tags.`robustkd.kind` = 'trend'").values()
    assert moved.info.run_name == "mtard · over time"
    points = store.get_metric_history(moved.info.run_id, "robust_accuracy")
    assert sorted((point.step, point.value) for point in points) == [(1, 0.75), (2, 0.70), (3, 0.78)]
    assert {point.timestamp for point in points if point.step == 3} == {1795420800000}  # when it was run, not when tracked
    note = moved.data.tags["mlflow.note.content"].splitlines()
    rows = [line for line in note if line.startswith("| 2026")]
    assert [row.split("|")[1].strip() for row in rows] == ["2026-11-23 08:00", "2026-11-16 08:00", "2026-11-09 08:00"]
    assert [sign in row for sign, row in zip(("+8.0", "-5.0", "not credible"), rows, strict=True)] == [True] * 3
    assert moved.data.tags["robustkd.verdict"] == "credible"


def test_a_long_history_fits_a_tag_and_keeps_its_steps():
    import math

    from robustkd.tracking import trend

    known, third = "", 1 / 3
    for number in range(60):
        outcome = results(cell(), defenses=(defended(robust_accuracy=third, ci_low=third, ci_high=2 * third),))
        outcome = replace(outcome, environment=Environment(finished="2026-11-09T08:00:00+00:00"))
        (history,) = trend.steps(outcome, f"{number:032d}", f"{number:012d}", {"mtard": known}).values()
        known = trend.trend_record("mtard", history).tags[trend.TAG]
    assert (history[-1].step, len(history)) == (60, trend.LONGEST)
    assert len(known) < MAX_NOTE
    assert math.isclose(history[0].robust_accuracy, third, abs_tol=1e-6)


def test_the_failures_view_finds_them(folder):
    track(folder, results(cell(), failed("mtard", "cw", 0, "out of memory"), defenses=(defended(),)))
    tags = client(folder).get_experiment_by_name("quick").tags
    view = json.loads(json.loads(tags["mlflow.sharedViewState.robustkd-failures"])["state"])
    assert set(runs(folder, view["searchFilter"])) == {"mtard × cw · seed 0"}
    assert "tags.`robustkd.error`" in view["selectedColumns"]
