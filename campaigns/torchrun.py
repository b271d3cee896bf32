"""A training by several processes of this machine: ``torchrun``, inside the process of a cell.

Each member is a worker of its own with its own device, holds the whole data and its needs, and does its share of every
minibatch (``robustkd.defenses.training.data_parallel``). The first of them writes the cell to the store. A member says what it has to say
in lines of JSON; its standard input is the lifeline of the process that the cell belongs to (see ``engines.child``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from robustkd.campaigns.cells import Cell
from robustkd.campaigns.engines import CellCrash, CellLost, error_of
from robustkd.campaigns.engines.child import die_with_parent, environment
from robustkd.campaigns.worker import Job, Report, Worker, device_named
from robustkd.contracts import DataError, IdentityError, RobustkdError, StoreError, TargetError, UsageError

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
    order.write_text(json.dumps({"job": asdict(job), "cell": asdict(cell)}))
    torchrun = [
        sys.executable,
        "-P",
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={job.training_processes}",
    ]
    argv = [*torchrun, "-m", __name__, str(order)]
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


def main() -> None:
    """What a member runs."""
    threading.Thread(target=die_with_parent, daemon=True).start()
    speech = os.dup(1)
    os.dup2(2, 1)  # what a plug-in prints must not come between the lines

    def say(**content: Any) -> None:
        os.write(speech, (json.dumps(content) + "\n").encode())  # one write: the members share the pipe

    rank = int(os.environ["LOCAL_RANK"])
    order = json.loads(Path(sys.argv[1]).read_text())
    job = Job(**order["job"])
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in order["cell"].items()}
    cell = Cell(**fields)
    try:
        device = _own_device(job.device, rank)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        leads = rank == 0

        def report(cell: Cell, epoch: int, metrics: Mapping[str, float]) -> None:
            if leads:
                say(epoch=epoch, metrics=dict(metrics))

        Worker(replace(job, training_processes=1, device=str(device)), report, writes=leads).run(cell)
        torch.distributed.destroy_process_group()
    except Exception as error:
        told = error_of(error)
        say(kind=type(told).__name__, error=told.message, fix=told.fix)
        raise SystemExit(1) from None  # torchrun then ends the others


def _own_device(name: str, rank: int) -> torch.device:
    first = device_named(name)
    return torch.device("cuda", (first.index or 0) + rank) if first.type == "cuda" else first


if __name__ == "__main__":
    main()
