"""A real ``mlflow server``, over SQLite and over PostgreSQL: written through it, cut off from it, and rebuilt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from robustkd.tracking import MlflowTracker, promote
from support.mlflow_server import free_port
from support.tracked_campaign import PARENT, WORST, campaign, cell, client, defended, gallery, results, runs, track

pytestmark = pytest.mark.slow


def target(folder: Path) -> Path:
    import torch

    from robustkd.targets import ClassifierTarget, save_target

    torch.manual_seed(0)
    trained = folder / "trained"
    trained.mkdir()
    save_target(ClassifierTarget.from_model("tiny-cnn", input_shape=(1, 8, 8), num_classes=10), trained)
    return trained


def whole(tmp_path: Path) -> None:
    """A campaign tracked twice: everything is there once, its files and its model come back through the server."""
    import mlflow.artifacts

    outcome = results(cell(), cell(attack="cw"), defenses=(defended(),))
    report = tmp_path / "report.html"
    report.write_text("<h1>hello</h1>")
    for _ in range(2):
        track(tmp_path, outcome, gallery=gallery(2), targets={("mtard", 0): tmp_path / "trained"}, artifacts=[report])
    found = runs(tmp_path)
    assert len(found) == 4
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    store = client(tmp_path)
    assert not (tmp_path / "mlartifacts").exists()  # nothing beside the server
    page = store.download_artifacts(found[PARENT].info.run_id, "report.html", str(tmp_path))
    assert Path(page).read_text() == "<h1>hello</h1>"
    assert len(store.get_metric_history(found[WORST].info.run_id, "train_loss")) == 3
    name = promote(tmp_path, outcome, "mtard", force=True)
    loaded = Path(mlflow.artifacts.download_artifacts(name, tracking_uri=store.tracking_uri))
    assert (loaded / "weights.safetensors").read_bytes() == (tmp_path / "trained" / "weights.safetensors").read_bytes()


def test_a_server_over_sqlite(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server(None).uri)
    target(tmp_path)
    whole(tmp_path)


def test_a_server_over_postgresql(server, postgresql, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server(postgresql).uri)
    target(tmp_path)
    whole(tmp_path)


def test_postgresql_without_a_server(postgresql, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgresql)
    track(tmp_path, results(cell(), defenses=(defended(),)))
    assert len(runs(tmp_path)) == 3
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://bob:planted-password@127.0.0.1:{free_port()}/x")
    tracker = MlflowTracker(tmp_path, campaign(), warn=lambda text: None, patience=1)
    began = time.monotonic()
    tracker.finish(results(cell()), force=True)
    assert "does not answer" in tracker.problem
    assert "planted-password" not in tracker.problem
    assert time.monotonic() - began < 20


def test_a_server_that_is_killed_for_some_seconds(server, tmp_path, monkeypatch):
    away = server(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", away.uri)
    said: list[str] = []
    cells = [cell(attack=f"a{number}") for number in range(40)]
    tracker = MlflowTracker(tmp_path, campaign(), warn=said.append, patience=300)  # a busy machine starts a server slowly
    for done in cells[:20]:
        tracker.log_cell(done)
    time.sleep(2)  # some are written, some wait
    away.kill()
    began = time.monotonic()
    for done in cells[20:]:
        tracker.log_cell(done)
    assert time.monotonic() - began < 0.5  # the campaign goes on
    back = threading.Timer(8, away.start)
    back.start()
    tracker.finish(results(*cells, defenses=(defended(),)))
    back.join()
    assert tracker.problem is None
    assert "does not answer" in said[0]
    assert said[-1] == "MLflow answers again"
    found = runs(tmp_path)  # which asserts that no name is there twice
    assert len(found) == 42
    assert {run.info.status for run in found.values()} == {"FINISHED"}


@pytest.mark.parametrize("mode", ["immediate", "fast"])
@pytest.mark.parametrize("commit", [2, 7, 20])
def test_a_database_that_restarts_in_the_middle_of_a_commit(
    postgresql_server, empty_store, tmp_path, monkeypatch, caplog, commit, mode
):
    """SQLAlchemy's own error came out of the rollback, was taken for one of ours, and tracking stopped with runs half written."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    monkeypatch.setenv("MLFLOW_TRACKING_URI", postgresql_server.uri)
    track(tmp_path, results(cell(attack="before")))  # the tables are there
    said: list[str] = []
    left = {"commits": commit}
    back = threading.Timer(5, postgresql_server.start)

    def stops(connection):
        left["commits"] -= 1
        if left["commits"] == 0:
            postgresql_server.stop(mode)
            back.start()

    cells = [cell(attack=f"a{number}") for number in range(12)]
    event.listen(Engine, "commit", stops)
    try:
        tracker = MlflowTracker(tmp_path, campaign(), warn=said.append, patience=300)
        for done in cells:
            tracker.log_cell(done)
        tracker.finish(results(*cells, defenses=(defended(),)))
    finally:
        event.remove(Engine, "commit", stops)
    back.join()
    assert tracker.problem is None
    assert "does not answer" in said[0]
    assert said[-1] == "MLflow answers again"
    assert "planted-password" not in "".join(said)
    found = runs(tmp_path)  # which asserts that no name is there twice
    assert len(found) == 1 + 14
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert "Traceback" not in caplog.text


SERVED = """
import json
import robustkd.tracking.dashboard_app as ours
page = ours.pages.test_client().get("/", headers={"Host": "127.0.0.1"})
print(json.dumps([type(ours.app).__name__, page.status_code, page.get_data(as_text=True)]))
"""


@pytest.mark.parametrize(("server", "app"), [("uvicorn", "FastAPI"), ("gunicorn", "Flask")])
def test_the_first_page_chooses_the_side_bar_of_models_where_nobody_has(tmp_path: Path, server: str, app: str) -> None:
    environment = os.environ | {"_MLFLOW_SGI_NAME": server, "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path / 'store.db'}"}
    done = subprocess.run([sys.executable, "-c", SERVED], capture_output=True, text=True, check=True, env=environment)
    kind, status, page = json.loads(done.stdout.splitlines()[-1])
    assert (kind, status) == (app, 200)
    script, rest = page.split("<script>", 1)[1].split("</script>", 1)
    assert "mlflow.workflowType_v1" in script
    assert "machine_learning" in script
    assert "static-files" in rest  # before MLflow's own scripts
