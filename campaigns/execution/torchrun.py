"""A training by several processes of this machine: ``torchrun``, inside the process of a cell.

Each member (``torchrun_member``) does its share of every minibatch, and says what it has to say in lines of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from robustkd.campaigns.execution.errors import CellCrash, CellLost
from robustkd.campaigns.execution.job import Job, Report
from robustkd.campaigns.execution.parent_watchdog import environment
from robustkd.campaigns.plan.cells import Cell
from robustkd.contracts import DataError, IdentityError, RobustkdError, StoreError, TargetError, UsageError

MEMBER = "robustkd.campaigns.execution.torchrun_member"
"""The module that a member runs; by its name, because it imports the worker, which trains through this module."""
_ERRORS = {kind.__name__: kind for kind in (UsageError, DataError, IdentityError, TargetError, StoreError, CellLost)}


def train_together(job: Job, cell: Cell, folder: Path, report: Report) -> None:
    """Do a train cell with ``job.training_processes`` processes.

    Args:
        folder: for the order that the members read.
        report: hears of each epoch.

    Raises:
        RobustkdError: what went wrong in a member.
    """
    order = folder / "torchrun.json"
    folder.mkdir(parents=True, exist_ok=True)
    order.write_text(json.dumps({"job": asdict(job), "cell": cell.to_json()}))
    torchrun = [
        sys.executable,
        "-P",
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={job.training_processes}",
    ]
    argv = [*torchrun, "-m", MEMBER, str(order)]
    threads = {"OMP_NUM_THREADS": str(job.threads)}
    wrong: list[RobustkdError] = []
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment() | threads, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said = json.loads(line)
            if "error" in said:
                wrong.append(_ERRORS.get(said["kind"], CellCrash)(said["error"], fix=said["fix"]))
            else:
                report(cell, said["epoch"], said["metrics"])
    order.unlink(missing_ok=True)
    if process.returncode:
        raise wrong[0] if wrong else CellLost(f"one of its processes died (torchrun's exit code is {process.returncode})")
