"""What listens to a run takes longer than the cells do, such as a tracking server far away.

The driver told of all cells that had ended before it gave the free workers their next ones: they waited for the listener.
"""

import time
from itertools import pairwise

import pytest

from robustkd.campaigns.execution.engines.dask import DaskEngine
from robustkd.campaigns.execution.run import Observer, run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.store.store import Store
from support.campaigns import tiny_campaign

distributed = pytest.importorskip("distributed")

ATTACKS = {f"pgd{steps}": f"{{kind: pgd, steps: {steps}}}" for steps in range(1, 6)}


class Slow(Observer):
    """Takes longer for a cell than all those take that run meanwhile."""

    def __init__(self, store):
        self.store, self.events = store, []

    def started(self, cell):
        self.events.append(("started", cell.id))

    def succeeded(self, cell, result):
        self.events.append(("succeeded", cell.id))
        deadline = time.monotonic() + 60
        begun = [id_ for what, id_ in self.events if what == "started"]
        while not all(self.store.path(id_).is_dir() for id_ in begun) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)  # until the driver could have heard of it


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_workers_get_their_next_cells_meanwhile(tmp_path):
    plan = planning.build(spec.from_text(tiny_campaign("slow", train=60, test=12, attacks=ATTACKS), "s.yaml", None))
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, protocol="tcp", host="127.0.0.1", dashboard_address=None
    ) as cluster:
        slow = Slow(Store(tmp_path / "out"))
        engine = DaskEngine(DaskEngine.Params(address=cluster.scheduler_address))
        results = run(plan, tmp_path / "out", engine, device="cpu", observers=[slow])
    assert not results.incomplete
    words = [what for what, _ in slow.events]
    assert words.count("started") == words.count("succeeded") == 1 + len(ATTACKS)
    last = len(words) - words[::-1].index("started") - 1
    assert ("succeeded", "succeeded") not in list(pairwise(words[:last])), words
