"""Workers of a cluster that do not see the results folder, or lack what a cell needs; and a scheduler that goes away.

Such a worker took one cell after another and failed all of them, or trained for ever what nobody saw.
"""

import asyncio
import threading
import time

import pytest

from robustkd.campaigns.execution.engines import dask_task, dask_workers
from robustkd.campaigns.execution.engines.dask import DaskEngine
from robustkd.campaigns.execution.run import Observer, run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from support.campaigns import tiny_campaign
from support.processes import children

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def cluster():
    # Dask's 30 seconds are for networks; whoever asks a scheduler that is gone waits as long.
    quick = {"distributed.comm.timeouts.connect": "2s"}
    with (
        dask.config.set(quick),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address=None
        ) as cluster,
    ):
        yield cluster
    dask_task.dismiss_children()  # a scheduler that is gone cannot tell the worker, which is this process


def plan_of(attacks=4):
    attacks = {f"pgd{steps}": f"{{kind: pgd, steps: {steps}}}" for steps in range(1, attacks + 1)}
    return planning.build(spec.from_text(tiny_campaign("workers", train=60, test=12, attacks=attacks), "w.yaml", None))


def engine(cluster):
    return DaskEngine(DaskEngine.Params(address=cluster.scheduler_address, scheduler_minutes=0.02))


def blind(monkeypatch, *addresses):
    """The workers at these addresses look for the results folder in vain; returns which were asked."""
    asked = []

    def sees(probe):
        asked.append(address := distributed.get_worker().address)
        return address not in addresses and probe.exists()

    monkeypatch.setattr(dask_task, "_sees", sees)
    return asked


def test_one_that_does_not_see_the_folder_is_set_aside(cluster, tmp_path, monkeypatch):
    addresses = [worker.address for worker in cluster.workers.values()]
    asked = blind(monkeypatch, addresses[0])
    results = run(plan_of(attacks=8), tmp_path / "out", engine(cluster), device="cpu")
    assert not results.incomplete
    # It is given no cell after its second refusal. The cluster's two threads may have had two when the first one was heard of.
    assert asked.count(addresses[0]) <= 3
    assert not list((tmp_path / "out").glob(".probe*"))


def test_where_none_sees_it_the_run_ends_and_names_them(cluster, tmp_path, monkeypatch):
    addresses = [worker.address for worker in cluster.workers.values()]
    asked = blind(monkeypatch, *addresses)
    results = run(plan_of(), tmp_path / "out", engine(cluster), device="cpu")
    assert {cell.status for cell in results.cells} == {"blocked"}
    (defense,) = results.defenses
    assert defense.error is not None
    assert any(
        f"worker {address}: the results folder {tmp_path / 'out'} is not there" in defense.error for address in addresses
    )
    assert len(asked) == 2


class ThenGone(Observer):
    def __init__(self, cluster):
        self.cluster = cluster

    def succeeded(self, cell, result):
        self.cluster.sync(self.cluster.scheduler.close)


def test_a_scheduler_that_goes_away_leaves_a_table_and_no_child(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(dask_task, "IDLE_SECONDS", 0.5)
    results = run(plan_of(), tmp_path / "out", engine(cluster), device="cpu", observers=[ThenGone(cluster)])
    assert results.incomplete
    lost = [cell for cell in results.cells if cell.status != "done"]  # what had begun may have ended before the scheduler went
    assert {cell.status for cell in lost} == {"pending"}
    assert all("the Dask scheduler is gone" in cell.error and "running again goes on" in cell.error for cell in lost)
    assert (tmp_path / "out/results.json").is_file()
    deadline = time.monotonic() + 60
    while children() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert children() == []


class Said(Observer):
    def __init__(self):
        self.texts = []

    def noted(self, text):
        self.texts.append(text)


def test_workers_with_another_torch_are_refused_by_name(cluster, tmp_path, monkeypatch):
    def version(package):
        driver = threading.current_thread() is threading.main_thread()
        return "1.13.1" if package == "torch" and not driver else "2.9.0"

    monkeypatch.setattr(dask_workers, "version", version)
    results = run(plan_of(), tmp_path / "out", engine(cluster), device="cpu", observers=[said := Said()])
    for worker in cluster.workers.values():
        sentence = f"worker {worker.address} has torch 1.13.1, the campaign was planned with torch 2.9.0"
        assert f"{sentence}: it gets no cell" in said.texts
        assert all(sentence in cell.error for cell in results.cells)
    assert children() == []


class Started(Observer):
    def __init__(self):
        self.examined, self.before_the_first_cell = [], None

    def started(self, cell):
        if self.before_the_first_cell is None:
            self.before_the_first_cell = len(self.examined)


def test_of_many_workers_the_first_work_while_others_are_asked_what_they_have(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(dask_workers, "EXAMINED_AT_ONCE", 1)
    seen = Started()
    versions = dask_workers.Workers._versions

    def asked(workers, package, of):
        if package == "robustkd":
            seen.examined.extend(of)
        return versions(workers, package, of)

    monkeypatch.setattr(dask_workers.Workers, "_versions", asked)
    results = run(plan_of(), tmp_path / "out", engine(cluster), device="cpu", observers=[seen])
    assert not results.incomplete
    assert seen.before_the_first_cell == 1
    assert sorted(seen.examined) == sorted(worker.address for worker in cluster.workers.values())


class InOrder(Observer):
    def __init__(self):
        self.ended = []

    def succeeded(self, cell, result):
        self.ended.append(cell.title)


@pytest.mark.slow
def test_a_worker_that_keeps_what_a_cell_returned_holds_up_no_other(cluster, tmp_path, monkeypatch):
    """A suspended one does. The driver asked for what ended cells returned one after the other, each for as long as it took."""
    fetched, seen = distributed.Future._result, InOrder()

    async def late(future, *arguments, **keywords):
        if "pgd1" in future.key:
            for _ in range(600):  # for a minute at most
                if len(seen.ended) == 4:
                    break
                await asyncio.sleep(0.1)
        return await fetched(future, *arguments, **keywords)

    monkeypatch.setattr(distributed.Future, "_result", late)
    results = run(plan_of(), tmp_path / "out", engine(cluster), device="cpu", observers=[seen])
    assert not results.incomplete
    assert len(seen.ended) == 5
    assert "pgd1" in seen.ended[-1]
