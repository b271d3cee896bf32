"""One of the processes that train a network together: what ``torchrun`` starts.

Each member is a worker of its own with its own device, holds the whole data and its needs, and does its share of every
minibatch (``robustkd.defenses.training.data_parallel``). The first of them writes the cell to the store. A member ends with the
process that the cell belongs to (see ``parent_watchdog``).
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from robustkd.campaigns.execution.errors import error_of
from robustkd.campaigns.execution.job import Job
from robustkd.campaigns.execution.parent_watchdog import exit_with_parent
from robustkd.campaigns.execution.worker import Worker
from robustkd.campaigns.plan.cells import Cell
from robustkd.contracts.devices import device_named
from robustkd.lazy import torch


def main() -> None:
    """Run one cell as a member of a torchrun group."""
    threading.Thread(target=exit_with_parent, daemon=True).start()
    speech = os.dup(1)
    os.dup2(2, 1)  # what a plug-in prints must not come between the lines

    def say(**content: Any) -> None:
        os.write(speech, (json.dumps(content) + "\n").encode())  # one write: the members share the pipe

    rank = int(os.environ["LOCAL_RANK"])
    order = json.loads(Path(sys.argv[1]).read_text())
    job = Job(**order["job"])
    cell = Cell.from_json(order["cell"])
    try:
        device = _own_device(job.device, rank)
        if device.type != "cpu":
            torch.accelerator.set_device_index(device)
        torch.distributed.init_process_group(torch.distributed.Backend.default_device_backend_map.get(device.type, "gloo"))
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
    return first if first.type == "cpu" else device_named(f"{first.type}:{(first.index or 0) + rank}")


if __name__ == "__main__":
    main()
