"""``make exam``: audit every network of the exam under every evaluation, and print what the verdicts are worth.

    PYTHONPATH=tests python -m exam [--family NAME ..] [--evaluation NAME ..] [--half fixed] [--seed TEXT] [--workers N]
                                    [--without CHECK ..] [--results FILE]

Half of the networks are always the same; the other half is held out: ``--seed`` draws their parameters, and is the release's number.
``--results`` holds the outcome of each network, and those that the same code has put there are not examined again. Ends with code 1 where
the exam is failed, as it must be ``--without reference-attack``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

import robustkd
from exam import all_families as all_families
from exam.evaluations import EVALUATIONS
from exam.family import FAMILIES, Network, networks
from exam.pairs import SAMPLES, Examined, Pair
from exam.table import passed, table


@dataclass(frozen=True)
class Settings:
    """What every audit of a run has in common: the number of samples, and the checks that are switched off."""

    samples: int = SAMPLES
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """The evaluations of one network that are still to be made."""

    network: Network
    evaluations: tuple[str, ...]


def examine(task: Task, settings: Settings) -> list[Pair]:
    """Train a network, find its truth, and audit it."""
    torch.set_num_threads(1)
    examined = Examined.of(task.network, settings.samples)
    return [examined.audit(name, settings.without) for name in task.evaluations]


def code() -> str:
    """A hash of the sources of robustkd and of the exam."""
    found = hashlib.sha256()
    for root in (Path(robustkd.__file__).parent, Path(__file__).parent):
        for folder, _, files in sorted(os.walk(root, followlinks=True)):
            for name in sorted(files):
                if name.endswith(".py"):
                    found.update(Path(folder, name).read_bytes())
    return found.hexdigest()


class Results:
    """The pairs that were examined, kept in a file; those of other settings or of other code are forgotten."""

    def __init__(self, settings: Settings, file: Path | None = None) -> None:
        self.settings, self.file = settings, file
        self.header = {"samples": settings.samples, "without": list(settings.without), "code": code()}
        self.pairs: list[Pair] = []
        if file and file.exists():
            stored = json.loads(file.read_text())
            if stored.get("header") == self.header:
                self.pairs = [Pair(**pair) for pair in stored["pairs"]]

    def add(self, pairs: Sequence[Pair]) -> None:
        self.pairs += pairs
        if self.file:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            content = {"header": self.header, "pairs": [asdict(pair) for pair in self.pairs]}
            self.file.write_text(json.dumps(content, indent=1))

    def missing(self, chosen: Sequence[Network], evaluations: Sequence[str]) -> Iterator[Task]:
        there = {(pair.network, pair.evaluation) for pair in self.pairs}
        for network in chosen:
            left = tuple(name for name in evaluations if (network.name, name) not in there)
            if left:
                yield Task(network, left)


def run(chosen: Sequence[Network], evaluations: Sequence[str], results: Results, workers: int = 2) -> list[Pair]:
    """Examine what ``results`` has not, and return all that was asked for."""
    tasks, began = list(results.missing(chosen, evaluations)), time.monotonic()
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for number, pairs in enumerate(pool.imap_unordered(partial(examine, settings=results.settings), tasks), 1):
            results.add(pairs)
            told = f"{number} of {len(tasks)}, {time.monotonic() - began:.0f} s: {pairs[0].network}"
            print(told, file=sys.stderr, flush=True)
    names = {network.name for network in chosen}
    return [pair for pair in results.pairs if pair.network in names and pair.evaluation in evaluations]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="exam", description="Examine the verdicts on networks that hide their weakness and honest ones."
    )
    parser.add_argument("--family", nargs="+", choices=sorted(FAMILIES), default=list(FAMILIES), metavar="NAME")
    parser.add_argument("--kind", choices=["artefact", "honest"], help="only these families")
    parser.add_argument("--evaluation", nargs="+", choices=list(EVALUATIONS), default=list(EVALUATIONS))
    parser.add_argument("--half", choices=["fixed", "held-out"], help="only this half")
    parser.add_argument("--draws", type=int, default=1, help="networks of a family, in each half")
    parser.add_argument(
        "--seed", default=robustkd.__version__, help="draws the held-out half (default: the version, %(default)s)"
    )
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--without", nargs="+", default=[], metavar="CHECK", help="checks that are switched off")
    parser.add_argument("--results", type=Path, help="a JSON file, to go on later where a run was stopped")
    given = parser.parse_args()
    chosen = [
        network
        for network in networks(given.draws, given.seed)
        if network.family in given.family
        and given.half in (None, "fixed" if network.seed.startswith("fixed") else "held-out")
        and given.kind in (None, "honest" if network.honest else "artefact")
    ]
    results = Results(Settings(given.samples, tuple(sorted(given.without))), given.results)
    pairs = run(chosen, given.evaluation, results, given.workers)
    print(table(pairs))
    return 0 if passed(pairs) else 1
