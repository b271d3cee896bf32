"""Five promises of the documents that could be broken in one line without a test that failed: each has one here (see also
``test_a_results_folder_with_other_times``, for the report).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from robustkd.attacks.image.gradient.fgsm import FGSM
from robustkd.campaigns.execution.engines import Limits
from robustkd.campaigns.execution.engines.dask import DaskEngine
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import Observer, run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.contracts import AttackError
from support.campaigns import external, tiny_campaign
from support.processes import children

ATTACKS = {"fgsm": "{kind: fgsm}", "pgd": "{kind: pgd, steps: 1}"}


def plan_of(text):
    return planning.build(spec.from_text(text, "c.yaml", None))


def test_what_is_finished_is_on_the_disk(tmp_path, monkeypatch):
    flushed = set()
    fsync = os.fsync

    def noted(descriptor):
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    run(plan_of(tiny_campaign("durable", train=40, test=8)), tmp_path, InlineEngine(), device="cpu")
    cells = [folder for folder in (tmp_path / "cells").rglob("*") if (folder / "meta.json").is_file()]
    assert len(cells) == 2
    for folder in cells:  # the files, the folder that names them, and the one that names the folder
        for path in (*folder.iterdir(), folder, folder.parent):
            assert path.stat().st_ino in flushed, path
    assert (tmp_path / "results.json").stat().st_ino in flushed


class Told(Observer):
    def __init__(self):
        self.todo, self.more, self.ran = None, [], []

    def planned(self, plan, finished, todo):
        self.todo = todo

    def extended(self, reasons, todo):
        self.more.append(todo)

    def started(self, cell):
        self.ran.append(cell.kind)


def test_checks_are_done_again_when_an_attack_that_had_failed_is_there_now(tmp_path, monkeypatch, only_checks):
    only_checks("not-trained")
    plan = plan_of(tiny_campaign("again", train=40, test=8, attacks=ATTACKS, checks="{level: standard}"))

    def fails(*_, **__):
        raise AttackError("not today")

    with monkeypatch.context() as patch:
        patch.setattr(FGSM, "run", fails)
        assert run(plan, tmp_path, InlineEngine(), device="cpu").incomplete
    assert not run(plan, tmp_path, InlineEngine(), device="cpu", observers=[told := Told()]).incomplete
    assert (told.todo, told.more, sorted(told.ran)) == (2, [], ["attack", "checks"])  # it is known before the attack is run


HANGS = """\
import time
import torch

class Hangs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(64, 10)

    def forward(self, x):
        if torch.is_grad_enabled():
            open(__file__ + ".began", "w").close()
            time.sleep(600)
        return self.linear(x.flatten(1))
"""


def campaign_that_hangs(folder):
    """Its text; its model is written beside it, and writes a file that says that it hangs."""
    (folder / "model.py").write_text(HANGS)
    return tiny_campaign("hangs", external("model.py:Hangs", "hangs"), test=20)


@contextmanager
def hanging(folder):
    """The driver of a campaign whose attack, in a child, hangs; at the end of the block the driver is waited for."""
    (folder / "c.yaml").write_text(campaign_that_hangs(folder))
    argv = [sys.executable, "-m", "robustkd", "run", "c.yaml", "--workers", "1", "--no-track", "--device", "cpu"]
    with subprocess.Popen(argv, cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as driver:
        while not (folder / "model.py.began").exists():
            assert driver.poll() is None
            time.sleep(0.05)
        yield driver


def of_folder(folder):
    """The living processes that work on cells of a results folder's campaign: their working folder is its parent."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == folder and b"robustkd" in (process / "cmdline").read_bytes():
                found.append(process)
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "signals",
    [
        pytest.param((signal.SIGKILL,), id="killed"),
        pytest.param((signal.SIGTERM,), id="terminated", marks=pytest.mark.slow),
        pytest.param((signal.SIGHUP,), id="its terminal closed", marks=pytest.mark.slow),
        pytest.param((signal.SIGINT, signal.SIGINT), id="Ctrl-C twice", marks=pytest.mark.slow),
        pytest.param((signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM), id="suspended before", marks=pytest.mark.slow),
    ],
)
def test_children_end_with_their_driver(tmp_path, signals):
    with hanging(tmp_path) as driver:
        assert len(of_folder(tmp_path)) == 2
        for one in signals:
            driver.send_signal(one)
            time.sleep(0.3)
    deadline = time.monotonic() + 20
    while of_folder(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert of_folder(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and prctl")
@pytest.mark.timeout(120)
def test_a_child_that_was_stopped_ends_with_its_driver(tmp_path):
    with hanging(tmp_path) as driver:
        (child,) = (int(process.name) for process in of_folder(tmp_path) if int(process.name) != driver.pid)
        os.kill(child, signal.SIGSTOP)
        driver.kill()
    deadline = time.monotonic() + 20
    while (left := of_folder(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in left:
        os.kill(int(process.name), signal.SIGKILL)
    assert left == []


@pytest.mark.timeout(120)
def test_cells_on_a_cluster_end_with_the_run(tmp_path):
    distributed = pytest.importorskip("distributed")
    plan = planning.build(spec.from_text(campaign_that_hangs(tmp_path), "c.yaml", tmp_path))
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address=None
    ) as cluster:

        class Engine(DaskEngine):
            """Its time is over when the cell hangs."""

            out_of_time = property(lambda self: (tmp_path / "model.py.began").exists())

        engine = Engine(DaskEngine.Params(address=cluster.scheduler_address), Limits(max_hours=1))
        results = run(plan, tmp_path / "out", engine, device="cpu")
        assert results.incomplete
        deadline = time.monotonic() + 20
        while children() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert children() == []
