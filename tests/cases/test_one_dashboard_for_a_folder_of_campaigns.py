"""Campaigns of one folder are in one MLflow store, with their accuracy and verdict, links to their samples, and when they were moved."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from robustkd.tracking import ui_command
from robustkd.tracking.dashboard import page_url
from robustkd.tracking.descriptions import MAX_NOTE
from robustkd.tracking.origin import origin_of
from robustkd.tracking.records import cell_record
from support.mlflow_server import free_port
from support.tracked_campaign import campaign, cell, client, defended, results, runs, track

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(empty_store, tmp_path, monkeypatch):
    """A folder of campaigns with an empty store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_store, tmp_path / "runs" / "mlflow.db")
    for name in ("quick", "again"):
        (tmp_path / "runs" / name).mkdir()
    return tmp_path / "runs"


def outcome(**changes):
    both = (defended(**changes), defended("pgd-at", robust_accuracy=0.6, verdict="credible", checks=[]))
    return results(cell(), defenses=both)


def test_two_campaigns_are_in_one_store_and_apart(home):
    track(home / "quick", outcome())
    track(home / "again", outcome())
    assert not list(home.glob("*/mlflow.db"))
    names = {found.name for found in client(home / "quick").search_experiments()}
    assert {"quick", "quick · again"} <= names
    assert len(runs(home / "quick")) == len(runs(home / "again")) == 4
    assert ui_command(home).env["MLFLOW_BACKEND_STORE_URI"] == ui_command(home / "again").env["MLFLOW_BACKEND_STORE_URI"]
    pages = {name: page_url(home / name, "http://127.0.0.1:5000") for name in ("quick", "again")}
    for name, page in pages.items():
        experiment = client(home / name).get_experiment_by_name(origin_of(home / name).experiment("quick")).experiment_id
        assert f"/experiments/{experiment}/runs?workflowType=machine_learning" in page


def test_the_campaign_s_own_run_has_its_accuracy_and_verdict(home):
    track(home / "quick", outcome())
    (parent,) = (run for run in runs(home / "quick").values() if run.data.tags["robustkd.kind"] == "campaign")
    assert parent.data.metrics["robust_accuracy"] == 0.6  # the higher one is not credible
    assert parent.data.metrics["clean_accuracy"] == 0.9
    assert parent.data.tags["robustkd.verdict"] == "credible"
    assert parent.data.tags["robustkd.best"] == "pgd-at"


def test_notes_lead_to_the_samples(home):
    track(home / "quick", outcome(), campaign(key="quick"))
    notes = {run.data.tags["robustkd.kind"]: run.data.tags["mlflow.note.content"] for run in runs(home / "quick").values()}
    viewer = "http://127.0.0.1:8350"
    assert f"{viewer}/campaign?run=quick" in notes["campaign"]
    assert f"{viewer}/samples?run=quick&defense=mtard&seed=0&show=broken&by=pgd" in notes["cell"]
    assert f"{viewer}/samples?run=quick&defense=" in notes["defense"]


def test_a_moved_folder_of_campaigns_tracks_on(home, tmp_path):
    track(home / "quick", outcome())
    (tmp_path / "elsewhere").mkdir()
    moved = home.rename(tmp_path / "elsewhere" / "runs")
    track(moved / "quick", outcome(robust_accuracy=0.5))
    assert len(runs(moved / "quick")) == 4
    assert not home.exists()
    place = client(moved / "quick").get_experiment_by_name("quick").artifact_location
    assert quote(str(moved)) in place


def test_one_campaign_that_was_moved_out_has_a_store_where_it_is(home, tmp_path):
    track(home / "quick", outcome())
    track(home / "again", outcome())
    alone = (home / "again").rename(tmp_path / "alone")
    track(alone, outcome())
    assert (alone / "mlflow.db").is_file()
    assert len(runs(alone)) == 4
    assert len(runs(home / "quick")) == 4


def test_a_folder_that_has_a_store_keeps_it(home, empty_store):
    shutil.copy(empty_store, home / "quick" / "mlflow.db")
    before = (home / "mlflow.db").read_bytes()
    track(home / "quick", outcome())
    assert (home / "mlflow.db").read_bytes() == before
    assert len(runs(home / "quick")) == 4


def ui(home, *words):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    command = [sys.executable, "-m", "robustkd", "ui", *words]
    return command, environment | {"PYTHONPATH": str(ROOT)}


def test_a_port_that_is_taken_is_said(home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command, environment = ui(home, "runs", "--port", str(port))
        done = subprocess.run(command, cwd=home.parent, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert f"port {port} cannot be used" in done.stderr
    assert "http://" not in done.stdout


@pytest.mark.slow
def test_the_address_is_printed_when_the_server_answers(home):
    from urllib.request import urlopen

    track(home / "quick", outcome())
    command, environment = ui(home, "quick", "--port", str(free_port()))
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, cwd=home.parent, env=environment, **quiet) as server:
        try:
            address = next(line.split()[0] for line in server.stdout if "Ctrl-C" in line)
            assert "/experiments/" in address
            with urlopen(address.partition("#")[0], timeout=10) as answer:
                assert answer.status == 200
        finally:
            server.terminate()


def test_a_long_note_keeps_its_link_and_fits():
    long = cell(status="failed", error="no memory\n" * 2000, robust_accuracy=None)
    note = cell_record(campaign(key="quick"), long).tags["mlflow.note.content"]
    assert len(note) <= MAX_NOTE
    assert "http://127.0.0.1:8350/samples?run=quick" in note.split("\n\n")[1]
