"""A campaign that is looked at while it runs."""

from __future__ import annotations

import os

import pytest
from viewer.conftest import served

import robustkd
from robustkd.campaigns.execution import live
from robustkd.campaigns.execution.live import PROGRESS, RunProgress
from support.campaigns import tiny_campaign

FAILING = tiny_campaign(
    "going",
    defenses={
        "plain": "{kind: standard, model: tiny-cnn, epochs: 3}",
        "lost": "{kind: external, path: gone.pt, model: tiny-cnn}",
    },
)


def test_cells_losses_and_failures_are_seen_while_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "PAUSE", 0.0)
    folder, seen = tmp_path / "runs" / "going", {}
    (tmp_path / "runs").mkdir()
    (tmp_path / "net.py").write_text("def build():\n    raise RuntimeError('no weights <b>here</b>')\n")
    text = FAILING.replace("{kind: external, path: gone.pt, model: tiny-cnn}", "{kind: external, code: 'net.py:build'}")
    monkeypatch.chdir(tmp_path)
    with served(tmp_path / "runs") as get:

        def look(event):
            if event.event in ("epoch", "done", "failed"):
                seen[event.event, event.epoch] = get("campaign", run="going").page, get("/").page

        results = robustkd.run(text, folder, workers=0, device="cpu", track=False, progress=look)
        assert results.incomplete
        campaign, board = seen["epoch", 2]
        assert "Running" in campaign.words
        assert (
            "epoch 2" in campaign.words or "epoch 3" in campaign.words
        )  # the observer before this one has not heard of it yet
        assert "loss" in campaign.words
        assert "cells done" in board.words
        during = seen["failed", None][0].words
        assert "blocked" in during or "failed" in during
        after = get("campaign", run="going").page
        assert "no weights <b>here</b>" in after.words
        assert "b" not in [tag for tag in after.tags if tag == "script"]
        assert "Robust accuracy, defense by attack" in after.words
    assert not (folder / PROGRESS).exists()


def test_a_run_that_was_stopped_leaves_no_progress(tmp_path):
    def stop(event):
        if event.event == "epoch":
            assert (tmp_path / "out" / PROGRESS).exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        robustkd.run(tiny_campaign(), tmp_path / "out", workers=0, device="cpu", track=False, progress=stop)
    assert not (tmp_path / "out" / PROGRESS).exists()


def test_a_run_whose_process_is_gone_has_stopped(tmp_path, finished):
    import shutil
    import socket

    shutil.copytree(finished / "pictures", tmp_path / "runs/pictures")
    gone = RunProgress(2**22 + 1, socket.gethostname(), 1e9, 1e9 + 60, kept=1, total=4, done=2)
    assert not gone.alive
    assert gone.seconds_left == 60
    assert RunProgress(os.getpid(), socket.gethostname(), 0, 0).alive
    (tmp_path / "runs/pictures" / PROGRESS).write_bytes(live._PROGRESS.dump_json(gone))
    with served(tmp_path / "runs") as get:
        answer = get("campaign", run="pictures")
        assert "Stopped" in answer.page.words
        assert "data-live" not in answer.text
        assert "fgsm" in answer.page.words  # its table is that of what is stored
        assert "about" not in answer.page.words.split("Time left")[1][:20]
        (tmp_path / "runs/pictures" / PROGRESS).write_text("[" * 100_000)
        assert "Stopped" not in get("campaign", run="pictures").page.words
