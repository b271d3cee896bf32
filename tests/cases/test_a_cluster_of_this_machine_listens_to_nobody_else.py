"""A Dask cluster of this machine needs no connection from another one; Dask's HTTP server was open to the whole network."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustkd.campaigns.execution.engines.dask import DaskEngine
from robustkd.campaigns.execution.run import Observer, run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from support.campaigns import tiny_campaign

pytest.importorskip("distributed")

LISTENING = "0A"
LOOPBACK = {"0100007F", "00000000000000000000000001000000"}


def listening() -> set[tuple[str, str]]:
    """Sockets at which this process listens, each with its address as Linux writes it: in hexadecimal."""
    own = {str(file.readlink()) for file in Path("/proc/self/fd").iterdir() if file.is_symlink()}
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and f"socket:[{fields[9]}]" in own:
                found.add((fields[9], fields[1].partition(":")[0]))
    return found


class Looks(Observer):
    def __init__(self) -> None:
        self.seen: set[tuple[str, str]] = set()

    def started(self, cell) -> None:
        self.seen |= listening()


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc")
@pytest.mark.parametrize("processes", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.timeout(120)
def test_all_that_it_opens_is_on_the_loopback_interface(tmp_path, processes, recwarn):
    before = listening()
    plan = planning.build(spec.from_text(tiny_campaign("alone", train=40, test=8), "a.yaml", None))
    engine = DaskEngine(DaskEngine.Params(workers=1, processes=processes))
    run(plan, tmp_path / "out", engine, device="cpu", observers=[looks := Looks()])
    opened = {address for _, address in looks.seen - before}
    assert opened
    assert opened <= LOOPBACK
    assert not [warning for warning in recwarn if "Port 8787" in str(warning.message)]
