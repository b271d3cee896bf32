"""What the platform costs where cells are many, or short, or side by side.

Ten thousand cells of an attack that does nothing: planned, run with one child a core, reported, and run again when all is
finished. Then real cells, of some ten seconds each: what a run takes beside them, and what a second worker saves. The goals of the
commands are in seconds of a machine on which ``import torch`` takes 1.6 s: it is timed before each of them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from _harness import Verdicts, conclude
from campaign import IMPORT_TORCH, spent

from robustkd.contracts.json_value import JsonObject

NOTHING = """\
from robustkd.lazy import torch
from robustkd.contracts import Attack, AttackResult, Params

class Nothing(Attack):
    class Params(Params):
        number: int = 0

    def run(self, target, batch, threat, rng):
        none = torch.zeros(len(batch), dtype=torch.int64, device=batch.inputs.device)
        return AttackResult(batch.inputs, none.bool(), none, none)
"""
LINEAR = """\
import torch

def build(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""
SIDE = 10
"""Defenses, and attacks, of the campaign of many cells; the rest is seeds."""
REAL = """\
version: 1
name: real
data: {{name: digits, train: 600, test: 256}}
threat: {{norm: linf, eps: 0.1}}
defenses:
  plain: {{kind: standard, model: small-cnn, epochs: 1}}
attacks:
{attacks}
checks: none
"""


@click.command()
@click.option("--cells", default=10_000, show_default=True)
@click.option("--real", default=16, show_default=True, help="Attack cells of the campaign of real ones.")
@click.option("--steps", default=2000, show_default=True, help="Steps of PGD in each of them.")
def main(cells: int, real: int, steps: int) -> None:
    """Print the table and write results/scale.json."""
    verdicts = Verdicts()
    with tempfile.TemporaryDirectory() as scratch:
        rows = many(Path(scratch), cells, verdicts) + side_by_side(Path(scratch), real, steps, verdicts)
    columns = [
        ("what", "what", ""),
        ("cells", "cells", "d"),
        ("seconds", "seconds", ".1f"),
        ("usual", "where torch takes 1.6", ".1f"),
        ("mib", "driver MiB", ".0f"),
    ]
    conclude("scale", rows, columns, verdicts)


def many(folder: Path, cells: int, verdicts: Verdicts) -> list[JsonObject]:
    """A campaign of attacks that do nothing."""
    count = many_cells(folder, cells)
    bare = timed(folder, "list", "attacks")
    rows = []
    for what, words, limit in (
        ("plan", ["plan", "many.yaml"], 5.0),
        ("run", ["run", "many.yaml", "--no-track", "--quiet"], None),
        ("report", ["report", "many.yaml"], 20.0),
        ("resume, all finished", ["run", "many.yaml", "--no-track", "--quiet"], 5.0),
    ):
        import_torch = spent("-c", "import torch")
        row = timed(folder, *words)
        usual = row["seconds"] * IMPORT_TORCH / import_torch
        rows.append({"what": what, "cells": count, **row, "import_torch": import_torch, "usual": usual})
        print(json.dumps(rows[-1]), flush=True)
        if limit:
            verdicts.expect(f"{what}, seconds", usual, limit * cells / 10_000)
    verdicts.expect("run, seconds a cell (50 cells a second)", rows[1]["usual"] / count, 1 / 50)
    verdicts.expect("run, the driver's memory in MiB", rows[1]["mib"], 300.0)
    return [{"what": "list (starting Python)", "cells": 0, **bare}, *rows]


def many_cells(folder: Path, cells: int) -> int:
    """Write ``many.yaml``, a campaign of so many attacks that do nothing, and their plug-in; how many cells it has."""
    package = folder / "nothing-1.dist-info"
    package.mkdir()
    (folder / "nothing.py").write_text(NOTHING)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: nothing\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[robustkd.attacks]\nnothing = nothing:Nothing\n")
    (folder / "linear.py").write_text(LINEAR)
    defenses = "\n".join(f"  d{n}: {{kind: external, code: 'linear.py:build', kwargs: {{seed: {n}}}}}" for n in range(SIDE))
    attacks = "\n".join(f"  a{n}: {{kind: nothing, number: {n}}}" for n in range(SIDE))
    seeds = list(range(-(-cells // SIDE**2)))
    (folder / "many.yaml").write_text(
        "version: 1\nname: many\ndata: {name: digits, test: 10}\nthreat: {norm: linf, eps: 0.1}\n"
        f"defenses:\n{defenses}\nattacks:\n{attacks}\nmatrix: {{seeds: {seeds}}}\nchecks: none\n"
    )
    return len(seeds) * SIDE**2 + SIDE


def side_by_side(folder: Path, cells: int, steps: int, verdicts: Verdicts) -> list[JsonObject]:
    """A campaign of single-thread attacks that take seconds, with one worker and with two."""
    attacks = "\n".join(f"  a{n}: {{kind: pgd, steps: {steps + n}, restarts: 2}}" for n in range(cells))
    (folder / "real.yaml").write_text(REAL.format(attacks=attacks))
    rows, own = [], {}
    for workers in (1, 2):
        out = f"real-{workers}"
        row = timed(folder, "run", "real.yaml", "--no-track", "--quiet", "--workers", str(workers), "--out", out)
        metas = [json.loads(file.read_text()) for file in (folder / out / "cells").glob("*/*/meta.json")]
        own[workers] = sum(meta["wall_seconds"] for meta in metas)
        rows.append({"what": f"real cells, {workers} at once", "cells": len(metas), **row, "own_seconds": own[workers]})
        print(json.dumps(rows[-1]), flush=True)
    one, two = rows
    verdicts.expect("one worker, seconds beside the cells' own, to these", one["seconds"] / own[1] - 1, 0.05)
    verdicts.expect("two workers' seconds to one's (1.7 times as fast)", two["seconds"] / one["seconds"], 1 / 1.7)
    return rows


def timed(folder: Path, *words: str) -> dict[str, float]:
    """Run a command of robustkd: how long it took, and the most memory of its own that its process held."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as said:
        began = time.monotonic()
        argv = [sys.executable, "-m", "robustkd", *words]
        process = subprocess.Popen(argv, cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT)
        peak = 0
        while process.poll() is None:
            peak = max(peak, held(process.pid))
            time.sleep(0.05)
        seconds = time.monotonic() - began
        said.seek(0)
        assert process.returncode == 0, said.read().decode()
    return {"seconds": seconds, "mib": peak / 1024}


def held(pid: int) -> int:
    """Memory of a process's own, in KiB; 0 when it is gone. Importing torch also maps some 240 MiB of files, which all processes share."""
    try:
        found = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


if __name__ == "__main__":
    main()
