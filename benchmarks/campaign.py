"""What a campaign costs beside its attacks, in CPU seconds of the command and all its children.

One FGSM cell (60 images of CIFAR-10 in an .npz file, ResNet-20) through every command, then twelve PGD cells of some three seconds with
and without MLflow beside the same attacks called from Python. Python's bytecode is compiled before anything is measured. A busy machine
makes every CPU second longer, so ``import torch`` is measured beside each command: the goals are in seconds of a machine on which that
takes 1.6 s, as on the one that they were set on.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import _networks
import click
import numpy as np
from _harness import Verdicts, conclude

HEAD = """\
version: 1
name: cost
data: {{name: npz, file: data.npz}}
threat: {{norm: linf, eps: 0.0001}}
defenses:
  resnet20: {{kind: external, model: resnet20, model_params: {normalisation}, weights: {root}/networks/cifar10_resnet20.safetensors}}
checks: none
attacks:
"""
IMAGES, STEPS, CELLS = 60, 20, 12
IMPORT_TORCH = 1.6
ALONE = f"""\
import resource
import _networks, torch, robustkd

def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

torch.set_num_threads(1)
network, x, y = _networks.load("cifar10_resnet20", {IMAGES})
robustkd.attack("fgsm", network, x, y, eps=0.0001)  # imports what an attack needs
began = cpu()
for n in range({CELLS}):
    robustkd.attack("pgd", network, x, y, eps=0.0001, steps={STEPS} + n)
print(cpu() - began)
"""


@click.command()
@click.option("--repeats", default=3, show_default=True)
def main(repeats: int) -> None:
    """Print the table and write results/campaign.json."""
    card = json.loads((_networks.SHARED / "networks" / "cifar10_resnet20.json").read_text())
    head = HEAD.format(root=_networks.SHARED, normalisation=json.dumps(card["normalisation"]))
    pgd = "\n".join(f"  pgd-{n}: {{kind: pgd, steps: {STEPS + n}}}" for n in range(CELLS))
    verdicts, rows = Verdicts(), []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _, x, y = _networks.load("cifar10_resnet20", IMAGES)
        np.savez(folder / "data.npz", x_test=x.mul(255).round().byte().numpy(), y_test=y.numpy())
        (folder / "one.yaml").write_text(head + "  fgsm: {kind: fgsm}\n")
        (folder / "twelve.yaml").write_text(head + pgd + "\n")

        def median(what: str, measure: Callable[[int], float]) -> float:
            measure(0)  # compiles bytecode
            pairs = [(spent("-c", "import torch"), measure(turn)) for turn in range(1, repeats + 1)]
            seconds = statistics.median(taken for _, taken in pairs)
            usual = statistics.median(taken * IMPORT_TORCH / torch for torch, taken in pairs)
            rows.append({"what": what, "seconds": seconds, "usual": usual, "pairs": pairs})
            print(json.dumps(rows[-1]), flush=True)
            return usual

        def command(*words: str) -> float:
            return spent("-m", "robustkd", *words, folder=folder)

        def run(file: str, turn: int, *more: str) -> float:
            return command("run", file, "--quiet", "--workers", "1", "--out", f"{file}-{turn}-{len(more)}", *more)

        median("--help", lambda turn: command("--help"))
        for what, goal, measure in (
            ("plan", 0.8, lambda turn: command("plan", "one.yaml")),
            ("run, one cell", 6.0, lambda turn: run("one.yaml", turn)),
            ("run, nothing to do", 1.2, lambda turn: run("one.yaml", 1)),
            ("report", 1.8, lambda turn: command("report", "one.yaml", "--out", f"one.yaml-{turn}-0")),
        ):
            verdicts.expect(what, median(what, measure), goal)
        median("run, one cell, --no-track", lambda turn: run("one.yaml", turn, "--no-track"))
        alone = median("twelve attacks alone", lambda turn: attacks(folder))
        median("twelve cells, --no-track", lambda turn: run("twelve.yaml", turn, "--no-track"))
        rows[-1]["ratio"] = rows[-1]["usual"] / alone
        tracked = median("twelve cells, tracked", lambda turn: run("twelve.yaml", turn))
        rows[-1]["ratio"] = tracked / alone
        verdicts.expect("twelve cells tracked, to the attacks alone", tracked / alone, 1.15)
    conclude(
        "campaign",
        rows,
        [
            ("what", "what", ""),
            ("seconds", "CPU seconds", ".2f"),
            ("usual", "where torch takes 1.6", ".2f"),
            ("ratio", "to the attacks alone", ".2f"),
        ],
        verdicts,
    )


def spent(*words: str, folder: Path | None = None) -> float:
    """CPU seconds, user and system, of a Python command and of every process that it waited for."""
    before = _children()
    subprocess.run([sys.executable, *words], cwd=folder, env=_environment(), stdout=subprocess.DEVNULL, check=True)
    return _children() - before


def attacks(folder: Path) -> float:
    """CPU seconds of the attacks in a process of their own, without its imports."""
    environment = _environment()
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONDONTWRITEBYTECODE", "MLFLOW_TRACKING_URI")}
    return kept | {"OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    main()
