"""Imports from a busy network file system take longer than a cell may: that time is not the cell's, and no cell ends because of it."""

import pytest

from robustkd.campaigns.execution.engines import Limits
from robustkd.campaigns.execution.engines.local import LocalEngine
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.store.store import Store
from support.campaigns import tiny_campaign

SLOW = """\
import sys, time
if any("engines.child" in word for word in sys.orig_argv):
    open(__file__ + ".started", "a").write("child ")
    time.sleep(8)
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_what_a_cell_may_take_begins_when_the_cell_does(tmp_path, monkeypatch):
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow/sitecustomize.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path / "slow")
    plan = planning.build(spec.from_text(tiny_campaign("slow", train=40, test=8), "s.yaml", None))
    engine = LocalEngine(LocalEngine.Params(workers=1), limits=Limits(cell_hours=7 / 3600, retries=0))
    results = run(plan, tmp_path / "out", engine, device="cpu")
    assert (tmp_path / "slow/sitecustomize.py.started").read_text() == "child "
    assert not results.incomplete, results
    store = Store(tmp_path / "out")
    assert all(store.get(cell.id).meta.wall_seconds < 7 for cell in plan.cells)
