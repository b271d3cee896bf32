"""Engines: the same numbers from all of them, and what they do when cells crash, hang or the time is over."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from robustkd.campaigns.execution import profile
from robustkd.campaigns.execution import run as running
from robustkd.campaigns.execution.engines import Limits
from robustkd.campaigns.execution.engines.child import Child
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.engines.local import LocalEngine
from robustkd.campaigns.execution.run import Observer, run
from robustkd.campaigns.execution.schedule import Schedule
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.plan.cells import AttackCell, TrainCell
from robustkd.campaigns.plan.estimate import Estimate
from robustkd.campaigns.store.store import Store
from robustkd.cli.plan import command as plan_command
from robustkd.contracts import UsageError
from support.campaigns import tiny_campaign
from support.processes import children

SMALL = tiny_campaign(
    "small",
    {
        "plain": "{kind: standard, model: tiny-cnn, epochs: 1}",
        "copy": "{kind: kd, student: tiny-cnn, teacher: plain, epochs: 1}",
    },
    {"fgsm": "{kind: fgsm}", "pgd": "{kind: pgd, steps: 3}"},
    train=200,
    test=40,
)

NETS = """\
import os, pathlib, signal, time
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, fault):
        super().__init__()
        torch.manual_seed(0)
        self.fault, self.linear = fault, nn.Linear(64, 10)

    def forward(self, x):
        if torch.is_grad_enabled() and self.fault:
            with open(pathlib.Path(__file__).with_name(self.fault), "a") as log:
                log.write("x")
            tries = pathlib.Path(__file__).with_name(self.fault).stat().st_size
            if self.fault == "hangs":
                time.sleep(300)
            if self.fault == "dies" and tries == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "memory" and tries == 1:
                raise MemoryError("no room")
            if self.fault == "bug":
                raise ValueError("out of order")
        return self.linear(x.flatten(1))

def fine(): return Net(None)
def hangs(): return Net("hangs")
def dies(): return Net("dies")
def memory(): return Net("memory")
def bug(): return Net("bug")
"""


class Log(Observer):
    """What was heard, and how many children there were at once at most."""

    def __init__(self):
        self.ran, self.tried, self.most = [], [], 0

    def started(self, cell):
        self.most = max(self.most, len(children()))

    def succeeded(self, cell, result):
        self.ran.append(cell.id)

    def retried(self, cell, error, wait):
        self.tried.append((cell.defense, wait))


def plan_of(text, folder=Path()):
    return planning.build(spec.from_text(text, "test.yaml", folder))


def external(folder, *faults):
    (folder / "nets.py").write_text(NETS)
    defenses = {fault: f"{{kind: external, code: 'nets.py:{fault}'}}" for fault in faults}
    return plan_of(tiny_campaign("small", defenses, train=200, test=40), folder)


def numbers(out):
    """results.json without what may differ from run to run."""

    def still(value):
        if isinstance(value, dict):
            return {key: still(item) for key, item in value.items() if "seconds" not in key and key != "finished"}
        return [still(item) for item in value] if isinstance(value, list) else value

    return still(json.loads((out / "results.json").read_text()))


@pytest.fixture(scope="module")
def inline(tmp_path_factory):
    out = tmp_path_factory.mktemp("inline")
    assert not run(plan_of(SMALL), out, InlineEngine(), device="cpu").incomplete
    return out


ENGINES = {
    "one child": "engine: {kind: local, workers: 1}",
    "a child a device": "{engine: {kind: local}, devices: [cpu, 'cpu:0']}",
    "dask in this process": "engine: {kind: dask, workers: 1, processes: false}",
    "dask, two workers": "engine: {kind: dask, workers: 2}",
}


@pytest.mark.parametrize(
    "how",
    [
        pytest.param("one child", marks=pytest.mark.slow),
        "a child a device",
        "dask in this process",
        pytest.param("dask, two workers", marks=pytest.mark.slow),
    ],
)
def test_every_engine_gives_the_same_numbers(how, inline, tmp_path):
    used = profile.from_text(ENGINES[how], "profile.yaml", tmp_path)
    plan = plan_of(SMALL)
    results = run(plan, tmp_path, used.make_engine(), device=used.device if "device" in how else "cpu")
    assert not results.incomplete
    assert numbers(tmp_path) == numbers(inline)
    if how == "a child a device":
        assert {Store(tmp_path).get(cell.id).meta.device for cell in plan.cells} == {"cpu", "cpu:0"}


def test_a_crash_is_tried_again_a_hang_is_stopped_and_a_fault_stays(tmp_path, monkeypatch):
    # Time flies for the one that hangs, so that no other cell can be late on a busy machine.
    flies = property(lambda child: 3600.0 * (child.cell is not None and child.cell.title == "hangs × fgsm · seed 0"))
    monkeypatch.setattr(Child, "seconds", flies)
    plan, log = external(tmp_path, "hangs", "dies", "memory", "bug", "fine"), Log()
    limits = Limits(retries=1, retry_wait=0.1, cell_hours=0.5)
    engine = LocalEngine(LocalEngine.Params(workers=2), limits)
    cells = {cell.defense: cell for cell in run(plan, tmp_path / "out", engine, device="cpu", observers=[log]).cells}
    assert {name: cell.status for name, cell in cells.items()} == {
        "hangs": "failed",
        "dies": "done",
        "memory": "done",
        "bug": "failed",
        "fine": "done",
    }
    assert "longer than the 0.5 hours" in cells["hangs"].error
    assert log.tried == [("dies", 0.1)]  # where memory ran out, half as many samples at once were enough
    assert (tmp_path / "bug").stat().st_size == 1
    assert (log.most, children()) == (2, [])


def test_tries_have_an_end_and_wait_longer_each_time(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text(NETS.replace("and tries == 1", ""))
    memory = {"memory": "{kind: external, code: 'nets.py:memory'}"}
    plan, log = plan_of(tiny_campaign("small", memory, train=200, test=40, checks=None), tmp_path), Log()
    engine = InlineEngine(limits=Limits(retries=3, retry_wait=0.01))
    results = run(plan, tmp_path / "out", engine, device="cpu", observers=[log])
    assert results.cells[0].status == "failed"
    assert "out of memory" in results.cells[0].error
    assert log.tried[:3] == [("memory", 0.01), ("memory", 0.02), ("memory", 0.04)]
    assert (tmp_path / "memory").stat().st_size >= 4


def test_too_little_memory_for_two_leaves_one(tmp_path):
    plan, log = external(tmp_path, "fine"), Log()
    two = plan_of(plan.campaign.text.replace("attacks:", "attacks:\n  pgd: {kind: pgd, steps: 2}"), tmp_path)
    engine = LocalEngine(LocalEngine.Params(workers=2, child_gb=1e6))
    assert not run(two, tmp_path / "out", engine, device="cpu", observers=[log]).incomplete
    assert log.most == 1


def test_a_run_whose_time_is_over_stops_and_the_next_one_goes_on(tmp_path):
    plan, log = plan_of(SMALL), Log()
    results = run(plan, tmp_path, InlineEngine(limits=Limits(max_hours=1e-9)), device="cpu", observers=[log])
    assert (log.ran, results.cells[0].status) == ([], "pending")
    assert "max_hours left no time for it" in (results.cells[0].error or "")

    class Slow(InlineEngine):
        """Its time is over after the second cell."""

        out_of_time = property(lambda self: len(log.ran) >= 2)

    assert run(plan, tmp_path, Slow(), device="cpu", observers=[log]).incomplete
    assert len(log.ran) == 2
    assert not run(plan, tmp_path, InlineEngine(), device="cpu", observers=[log]).incomplete
    assert len(log.ran) == len(set(log.ran)) == len(plan.cells)


def cells_of(*targets):
    """A train cell for each target, and three attacks on it."""
    made = []
    for target in targets:
        made.append(TrainCell(id=target, defense=target, seed=0, target=target))
        made += [AttackCell(id=f"{target}{n}", defense=target, seed=0, target=target, attack=str(n)) for n in range(3)]
    return made


def test_a_child_gets_the_cells_of_the_target_it_has_and_others_where_none_is_left():
    cells = cells_of("a", "b")
    schedule = Schedule(cells, finished=["a", "b"])
    assert schedule.take(loaded=["b"]).id == "b0"
    assert schedule.take(loaded=[], elsewhere=["b"]).id == "a0"
    assert schedule.take(loaded=["c"], elsewhere=["a"]).id == "b1"
    assert [schedule.take(["a"], ["b"]).id for _ in range(3)] == ["a1", "a2", "b2"]
    assert schedule.take() is None


def test_cells_known_to_take_longer_than_is_left_are_not_begun():
    schedule = Schedule(cells_of("a"), finished=["a"], seconds={"a0": 10.0, "a1": 1.0})
    assert [schedule.take(within=5).id for _ in range(2)] == ["a1", "a2"]
    assert schedule.take(within=5) is None


def test_a_cell_runs_after_its_needs_and_those_of_a_failed_one_never():
    schedule = Schedule(cells_of("a", "b"))
    first, second = schedule.take(), schedule.take()
    assert (first.id, second.id, schedule.take()) == ("a", "b", None)
    assert [cell.id for cell in schedule.fail(first)] == ["a0", "a1", "a2"]
    schedule.succeed(second)
    again = schedule.take()
    schedule.again(again, 0.0)
    assert schedule.pause() == 0
    assert sorted(schedule.take().id for _ in range(3)) == ["b0", "b1", "b2"]
    assert schedule.take() is None


def test_several_devices_need_an_engine_that_has_several_children(tmp_path):
    with pytest.raises(UsageError, match="several"):
        run(plan_of(SMALL), tmp_path, InlineEngine(), device="cpu,cpu:0")


def test_a_plan_says_what_is_to_do_and_by_what_it_knows(inline, tmp_path):
    other = "  other: {kind: standard, model: tiny-cnn, epochs: 2}\nattacks:"
    text = SMALL.replace("attacks:", other) + "matrix: {seeds: [0, 1]}\n"
    (tmp_path / "campaign.yaml").write_text(text)
    shown = CliRunner().invoke(plan_command, [str(tmp_path / "campaign.yaml"), "--out", str(inline), "--json"]).output
    plan = json.loads(shown)
    found = {(cell["defense"], cell["seed"], cell["attack"]): cell["estimate"] for cell in plan["cells"]}
    stored = {(cell.defense, getattr(cell, "attack", None)): Store(inline).get(cell.id).meta for cell in plan_of(SMALL).cells}
    for known in stored.keys() - {(defense, None) for defense in ("plain", "copy")}:
        assert found[known[0], 0, known[1]] is None
        assert found[known[0], 1, known[1]]["basis"] == "the same with another seed"
        assert found[known[0], 1, known[1]]["seconds"] == stored[known].wall_seconds
        assert found[known[0], 1, known[1]]["passes"] == stored[known].passes
    assert found["copy", 1, None]["basis"] == "the same with another seed"  # its teacher's id is another, its recipe is not
    assert found["other", 0, "pgd"]["basis"] == "the same on another defense"
    assert found["other", 0, None] == {"basis": "unknown", "seconds": None, "passes": None}
    assert plan["cost"]["cells"] == {"the same with another seed": 6, "the same on another defense": 4, "unknown": 2}
    assert plan["cost"]["seconds"] == pytest.approx(sum(one["seconds"] or 0 for one in found.values() if one))
    shown = CliRunner().invoke(plan_command, [str(tmp_path / "campaign.yaml"), "--out", str(inline)]).output
    assert "6 by the same with another seed, 4 by the same on another defense" in shown
    assert "2 of 12 cells take unknown time" in shown


def test_a_cell_that_does_not_fit_into_the_time_that_is_left_is_not_begun(inline, tmp_path, monkeypatch):
    shutil.copytree(inline / "cells", tmp_path / "cells")
    plan, log = plan_of(SMALL + "matrix: {seeds: [0, 1]}\n"), Log()
    known = {cell.id: 900.0 for cell in plan.of("train") if (cell.defense, cell.seed) == ("plain", 1)}
    monkeypatch.setattr(running, "estimates", lambda *_: {id_: Estimate("unknown", seconds) for id_, seconds in known.items()})
    fits = InlineEngine(limits=Limits(max_hours=0.26))
    hurried = InlineEngine(limits=Limits(max_hours=0.26))
    hurried._ends -= 60
    assert run(plan, tmp_path, hurried, device="cpu", observers=[log]).incomplete
    assert log.ran == []
    assert not run(plan, tmp_path, fits, device="cpu", observers=[log]).incomplete
    assert len(log.ran) == 6
