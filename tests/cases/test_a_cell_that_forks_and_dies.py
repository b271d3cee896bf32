"""A cell's process starts another one, as any process pool does, and is killed, as the kernel does where memory runs out.

What it had started holds the pipe to the driver open, so that the pipe never says that the process is dead.
"""

import os
import time
from contextlib import closing
from pathlib import Path

import pytest

from robustkd.campaigns.execution.engines import Limits
from robustkd.campaigns.execution.engines.child import Child
from robustkd.campaigns.execution.engines.local import LocalEngine
from robustkd.campaigns.execution.job import Job
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from support.campaigns import external, tiny_campaign

MODEL = """\
import os, pathlib, signal, time
import torch

class Forks(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(64, 10)

    def forward(self, x):
        if torch.is_grad_enabled():
            if (pid := os.fork()) == 0:
                time.sleep(600)
            pathlib.Path(__file__).with_name("pids").open("a").write(f"{pid} ")
            os.kill(os.getpid(), signal.SIGKILL)
        return self.linear(x.flatten(1))
"""
CAMPAIGN = tiny_campaign("forking", external("model.py:Forks", "forks"))


FORKS = MODEL.replace("            os.kill(os.getpid(), signal.SIGKILL)\n", "")


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir() or not hasattr(os, "fork"), reason="needs fork and /proc")
@pytest.mark.timeout(120)
def test_the_campaign_goes_on_and_nothing_is_left_running(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    plan = planning.build(spec.from_text(CAMPAIGN, "forking.yaml", tmp_path))
    results = run(plan, tmp_path / "out", LocalEngine(LocalEngine.Params(workers=1), limits=Limits(retries=0)), device="cpu")
    (cell,) = results.cells
    assert cell.status == "failed"
    assert "SIGKILL" in cell.error
    assert_ended(tmp_path)


@pytest.mark.skipif(not Path("/proc").is_dir() or not hasattr(os, "fork"), reason="needs fork and /proc")
@pytest.mark.timeout(120)
def test_a_child_whose_driver_is_dead_ends_what_its_cell_has_started(tmp_path):
    """Between two cells a child learns of it from the pipe, before its standard input says so."""
    (tmp_path / "model.py").write_text(FORKS)
    plan = planning.build(spec.from_text(CAMPAIGN, "forking.yaml", tmp_path))
    (tmp_path / "out").mkdir()
    child = Child(Job(plan.campaign.text, plan.campaign.origin, str(tmp_path), str(tmp_path / "out"), device="cpu"))
    with closing(child.pipe):
        for cell in plan.cells:
            child.send(cell)
            while (said := child.receive())[0] in ("began", "progress"):
                pass
            assert said[0] == "done", said
    try:
        child._process.wait(30)  # its standard input is open still
        assert_ended(tmp_path)
    finally:
        child.stop()


def assert_ended(folder: Path) -> None:
    pids = [int(pid) for pid in (folder / "pids").read_text().split()]
    deadline = time.monotonic() + 10
    while any(map(running, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert pids
    assert not any(map(running, pids))
