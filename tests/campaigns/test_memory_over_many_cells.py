"""Memory over a campaign of thousands of small cells: neither the driver nor its children hold more at its end than early on.

pytest -m slow -s tests/campaigns/test_memory_over_many_cells.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from support.campaigns import tiny_campaign

LINEAR = """\
import torch

def build(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""
CELLS = int(os.environ.get("ROBUSTKD_MANY_CELLS", 3000))
SIDE = 10
EARLY = 300
"""Cells after which nothing should be added but what is known of each cell."""
DRIVER_KIB, CHILD_KIB = 6, 2
"""What may be added for each further cell: the driver has its row of the results, a child nothing."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("tracked", [False, True])
def test_memory_does_not_grow_with_the_cells(tmp_path, tracked):
    (tmp_path / "linear.py").write_text(LINEAR)
    seeds = list(range(CELLS // SIDE**2))
    text = tiny_campaign(
        "many",
        test=10,
        defenses={f"d{n}": f"{{kind: external, code: 'linear.py:build', kwargs: {{seed: {n}}}}}" for n in range(SIDE)},
        attacks={f"a{n}": f"{{kind: pgd, steps: {n + 1}}}" for n in range(SIDE)},
        matrix=f"{{seeds: {seeds}}}",
    )
    (tmp_path / "c.yaml").write_text(text)
    argv = [sys.executable, "-m", "robustkd", "run", "c.yaml", "--workers", "2", "--device", "cpu"]
    argv += [] if tracked else ["--no-track"]
    held: dict[int, list[tuple[int, int]]] = {}
    with (tmp_path / "log.txt").open("w") as log:
        driver = subprocess.Popen(argv, cwd=tmp_path, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
        while driver.poll() is None:
            done = len(re.findall(r"^\[\d+/\d+\]", (tmp_path / "log.txt").read_text(), re.MULTILINE))
            if EARLY <= done < len(seeds) * SIDE**2:  # the report comes after the last one
                for pid in (driver.pid, *children_of(driver.pid)):
                    held.setdefault(pid, []).append((done, anonymous(pid)))
            time.sleep(0.5)
    assert driver.returncode == 0, (tmp_path / "log.txt").read_text()[-3000:]
    for pid, points in held.items():
        cells, kib = np.array(points).T
        if len(points) < 20:
            continue  # a child that was started or ended in between
        slope = float(np.polyfit(cells, kib, 1)[0])
        name = "driver" if pid == driver.pid else "child"
        print(
            f"{name}: {kib[0] / 1024:.0f} MiB after {cells[0]} cells, {kib[-1] / 1024:.0f} after {cells[-1]}, {slope:+.1f} KiB a cell"
        )
        assert slope < (DRIVER_KIB if pid == driver.pid else CHILD_KIB), points
    assert len(held) >= 3


def children_of(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found


def anonymous(pid: int) -> int:
    """Memory of a process's own, in KiB."""
    try:
        found = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0
