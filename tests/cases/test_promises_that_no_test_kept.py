"""Five promises of the documents that could be broken in one line without a test that failed: each has one here (see also
``test_a_results_folder_with_other_times``, for the report).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
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
from support.campaigns import tiny_campaign
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


STARTS_A_CHILD = """\
import sys, time
from robustkd.campaigns.execution.engines.child import Child
from robustkd.campaigns.execution.job import Job

print(Child(Job("", "", ".", sys.argv[1], "cpu")).pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_children_end_with_a_driver_that_is_killed(tmp_path):
    argv = [sys.executable, "-c", STARTS_A_CHILD, str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        child = Path("/proc", driver.stdout.readline().strip(), "cmdline")
        assert b"engines.child" in child.read_bytes()
        driver.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while child.exists() and child.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or not child.read_bytes()


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


@pytest.mark.timeout(120)
def test_cells_on_a_cluster_end_with_the_run(tmp_path):
    distributed = pytest.importorskip("distributed")
    (tmp_path / "model.py").write_text(HANGS)
    defenses = {"hangs": '{kind: external, code: "model.py:Hangs"}'}
    plan = planning.build(spec.from_text(tiny_campaign("hangs", test=20, defenses=defenses), "c.yaml", tmp_path))
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
