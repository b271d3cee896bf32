"""A campaign of many cells: the driver does not keep the notes of all that have ended.

`test_memory_over_many_cells.py` measures the processes over thousands of cells, and takes minutes.
"""

import gc

import pytest

from robustkd.application import session
from robustkd.campaigns.execution import profile
from robustkd.campaigns.execution.run import Observer
from robustkd.campaigns.file import spec
from robustkd.campaigns.store import store
from robustkd.campaigns.store.meta import CellMeta
from support.campaigns import tiny_campaign

CELLS, KEPT = 40, 8


class CountsNotes(Observer):
    """Counts the notes of cells that are in memory when the last attack has ended."""

    def __init__(self) -> None:
        self.left, self.most = CELLS, 0

    def succeeded(self, cell, result) -> None:
        self.left -= result is not None
        if not self.left:
            self.most = notes()


def notes() -> int:
    gc.collect()
    return sum(issubclass(type(item), CellMeta) for item in gc.get_objects())


@pytest.mark.timeout(240)
@pytest.mark.slow
def test_few_notes_are_in_memory_and_the_results_are_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "NOTES_IN_MEMORY", KEPT, raising=False)
    attacks = {f"a{n}": f"{{kind: pgd, steps: 1, step_size: {n / 1000}}}" for n in range(1, CELLS + 1)}
    loaded = spec.from_text(tiny_campaign("many", train=20, test=4, attacks=attacks), "many.yaml", tmp_path)
    (tmp_path / "p.yaml").write_text("engine: {kind: inline}\ndevices: [cpu]\ntracking: {enabled: false}\n")
    looked, before = CountsNotes(), notes()
    found = session.run(loaded, tmp_path / "out", profile.load(tmp_path / "p.yaml"), observers=[looked])
    # The driver and its worker, which is in this process here, have a store each; and the cell just ended.
    assert looked.most - before <= 2 * KEPT + 2
    assert [cell.status for cell in found.cells] == ["done"] * CELLS
    again = session.run(loaded, tmp_path / "out", profile.load(tmp_path / "p.yaml"))
    assert again.to_dict()["cells"] == found.to_dict()["cells"]
