"""What a run costs on a large Dask cluster: 10,000 cells that sleep, on 64 workers, with this machine as the cluster.

The driver, the scheduler, the protocol and the store are the real ones, and so are the cells (an attack that does nothing, on linear
networks). The children are not: a worker sleeps, and then does the cell in its own process, one of the process's workers at a time.
So many workers fit onto one machine.

    python benchmarks/cluster.py --cells 10000 --workers 64 --seconds 8
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
from _harness import Verdicts, conclude
from scale import held, many_cells

import robustkd
from robustkd.contracts.json_value import JsonObject

TARGETS = {"ms": 20.0, "mib": 500.0, "delay_p99": 1.0}
"""What the driver may take for a cell (CPU milliseconds), hold (MiB), and how long a worker may wait for its next cell (seconds)."""


@click.command()
@click.option("--cells", default=10_000, show_default=True)
@click.option("--workers", default=64, show_default=True, help="Dask workers of one thread.")
@click.option("--processes", default=4, show_default=True, help="The processes that these workers share.")
@click.option("--seconds", default=8.0, show_default=True, help="How long a cell sleeps.")
@click.option("--track", is_flag=True, help="Write to MLflow, too.")
def main(cells: int, workers: int, processes: int, seconds: float, track: bool) -> None:
    """Print the row and write results/cluster-CELLS-WORKERS.json."""
    with tempfile.TemporaryDirectory() as scratch:
        row = simulated(Path(scratch), cells, workers, processes, seconds, track)
    columns = ["cells", "workers", "ms", "scheduler_ms", "mib", "delay_p50", "delay_p99", "used", "wall"]
    verdicts = Verdicts()
    for name, most in TARGETS.items():
        verdicts.expect(name, float(str(row[name])), most)
    file = f"cluster-{cells}-{workers}" + ("-tracked" if track else "")
    conclude(file, [row], [(name, name, ".3g") for name in columns], verdicts)


def simulated(folder: Path, cells: int, workers: int, processes: int, seconds: float, track: bool) -> JsonObject:
    """One campaign on a cluster of its own: what the driver and the scheduler took, and how long workers waited."""
    count = many_cells(folder, cells)
    path = os.pathsep.join([str(folder), str(Path(robustkd.__file__).parents[1])])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    address = folder / "scheduler.json"
    with ExitStack() as ends, (folder / "log.txt").open("w") as log:

        def start(*words: str) -> subprocess.Popen[bytes]:
            argv = [sys.executable, *words]
            process = subprocess.Popen(argv, cwd=folder, env=environment, stdout=log, stderr=log)
            ends.callback(process.wait)
            ends.callback(process.kill)
            return process

        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(address)]
        scheduler = start("-m", "distributed.cli.dask_scheduler", *options)
        while not address.exists():
            time.sleep(0.1)
        for number in range(processes):
            share = workers // processes + (number < workers % processes)
            start(str(Path(__file__).with_name("_sleeping_workers.py")), str(address), str(share), str(seconds))
        while len(list(folder.glob("*.ready"))) < processes:
            assert scheduler.poll() is None, (folder / "log.txt").read_text()[-3000:]
            time.sleep(0.1)
        tcp = json.loads(address.read_text())["address"]
        (folder / "profile.yaml").write_text(f"engine: {{kind: dask, address: '{tcp}'}}\n")
        before, began = cpu(scheduler.pid), time.monotonic()
        driver = start(
            "-m", "robustkd", "run", "many.yaml", "--profile", "profile.yaml", "--quiet", *([] if track else ["--no-track"])
        )
        peak, own = 0, 0.0
        while driver.poll() is None:
            peak, own = max(peak, held(driver.pid)), cpu(driver.pid) or own
            time.sleep(0.2)
        assert driver.returncode == 0, (folder / "log.txt").read_text()[-3000:]
        wall, schedulers = time.monotonic() - began, cpu(scheduler.pid) - before
    spans = [json.loads(line) for file in folder.glob("*.spans") for line in file.read_text().splitlines()]
    assert len({span[0] for span in spans}) == workers, "some workers did nothing"
    gaps = waits(spans, workers)
    busy = sum(end - start for _, start, end in spans)
    working = max(end for *_, end in spans) - min(start for _, start, _ in spans)
    return {
        "cells": count,
        "workers": workers,
        "sleep": seconds,
        "tracked": track,
        "ms": 1000 * own / count,
        "scheduler_ms": 1000 * schedulers / count,
        "mib": peak / 1024,
        "delay_p50": float(np.percentile(gaps, 50)),
        "delay_p99": float(np.percentile(gaps, 99)),
        "used": busy / (workers * working),
        "wall": wall,
    }


def waits(spans: list[tuple[str, float, float]], workers: int) -> list[float]:
    """Seconds between the end of a worker's cell and the beginning of its next, but for the end of the campaign."""
    of_worker = defaultdict(list)
    for worker, start, end in spans:
        of_worker[worker].append((start, end))
    last = sorted(start for _, start, _ in spans)[-workers]  # no worker lacks a cell while others still begin so many
    found = []
    for pairs in of_worker.values():
        pairs.sort()
        found += [after[0] - before[1] for before, after in pairwise(pairs) if after[0] <= last]
    return found


def cpu(pid: int) -> float:
    """CPU seconds of a process; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
