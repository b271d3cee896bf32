"""A campaign killed over and over: it must end with the table of an undisturbed run, and have done nothing twice.

Each kill has a victim: the driver, a child, a Dask worker, whoever is writing to the store, or the driver while it writes to
MLflow; the driver beside a child that was stopped (SIGSTOP), or a driver that was stopped itself. A child that was stopped and is
continued goes on. One defense's cells start a process of their own, as any pool of processes does.

The moment is a random number of finished cells after the start, and a random part of a second more. When the driver survives its
victim, it goes on until a further cell is finished, and is killed then. A campaign that ends before its kill is checked, and another
one is begun.

    python tests/chaos/chaos.py --kills 30 --seed 0
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.store.store import Store

CAMPAIGN = """\
version: 1
name: chaos
data: {name: digits, train: 120, test: 20}
threat: {norm: linf, eps: 0.1}
defenses:
  plain: {kind: standard, model: tiny-cnn, epochs: 2}
  robust: {kind: pgd-at, model: tiny-cnn, epochs: 2, inner: {steps: 2}}
  student: {kind: kd, student: tiny-cnn, teacher: plain, epochs: 2}
  forks: {kind: external, code: "forks.py:Forks"}
attacks:
  fgsm: {kind: fgsm}
  bim: {kind: bim, steps: 3}
  pgd: {kind: pgd, steps: 3}
  margin: {kind: pgd, steps: 3, loss: margin}
  mi: {kind: mi-fgsm, steps: 3}
  twice: {kind: pgd, steps: 2, restarts: 2}
matrix: {seeds: [0, 1, 2]}
checks: none
"""
FORKS = """\
import os, time
import torch

begun = []

class Forks(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(64, 10)

    def forward(self, x):
        if "ROBUSTKD_CHAOS" in os.environ and torch.is_grad_enabled() and not begun:
            begun.append(True)
            if os.fork() == 0:
                time.sleep(3600)  # it has everything open that its parent has, the pipe to the driver as well
        return self.linear(x.flatten(1))
"""
PROFILES = {"local": "engine: {kind: local, workers: 2}\n", "dask": "engine: {kind: dask, workers: 2}\n"}
RETRIES = "limits: {retries: 5, retry_wait: 0.1}\ntracking: {images: 2}\n"
VICTIMS = ("driver", "child", "worker", "stopped child", "store", "mlflow", "driver of a stopped child", "stopped driver")
PATIENCE = 600.0
"""Seconds without which nothing is said to hang; generous, for machines that do other things as well."""


class Driver:
    """``robustkd run`` as a process, and everything that it started."""

    def __init__(self, folder: Path, engine: str) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        self.log = folder / "log.txt"
        (folder / "campaign.yaml").write_text(CAMPAIGN)
        (folder / "forks.py").write_text(FORKS)
        (folder / "profile.yaml").write_text(PROFILES[engine] + RETRIES)
        argv = [
            sys.executable,
            "-m",
            "robustkd",
            "run",
            "campaign.yaml",
            "--profile",
            "profile.yaml",
            "--out",
            "out",
            "--device",
            "cpu",
        ]
        environment = os.environ | {"ROBUSTKD_CHAOS": self.mark, "TMPDIR": str(folder / "tmp")}
        environment.pop("MLFLOW_TRACKING_URI", None)
        (folder / "tmp").mkdir(exist_ok=True)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(argv, cwd=folder, env=environment, stdout=log, stderr=log)

    def lines(self) -> int:
        """Cells that it said are finished."""
        return len(re.findall(r"^\[\d+/\d+\]", self.log.read_text(), re.MULTILINE))

    def over(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None

    def wait_for(self, what: Callable[[], bool]) -> bool:
        """Until ``what`` is true or the driver ends; whether it is."""
        began = time.monotonic()
        while not self.over():
            if what():
                return True
            assert time.monotonic() - began < PATIENCE, f"nothing happens any more:\n{self.log.read_text()}"
            time.sleep(0.0005)
        return False

    def family(self) -> dict[int, str]:
        """The living processes that it started, and what they started: pid and command line."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (process / "environ").read_bytes():
                    found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, ValueError):
                continue
        return found

    def kill(self, victim: str) -> bool:
        """Do to one of the family what ``victim`` says; False when there is no such member."""
        if victim == "driver":
            self.process.kill()
            self.process.wait()
            return True
        if victim == "stopped driver":
            self.process.send_signal(signal.SIGSTOP)
            time.sleep(random.uniform(0, 2))
            return self.kill("driver")
        what = "multiprocessing.spawn" if victim == "worker" else "engines.child"
        pids = [pid for pid, words in self.family().items() if what in words and (victim == "worker" or _leads(pid))]
        if not pids:
            return False
        chosen = random.choice(pids)
        if victim in ("child", "worker"):
            os.kill(chosen, signal.SIGKILL)
            return True
        os.kill(chosen, signal.SIGSTOP)
        time.sleep(random.uniform(0, 2))
        if victim == "driver of a stopped child":
            return self.kill("driver")
        with contextlib.suppress(ProcessLookupError):
            os.kill(chosen, signal.SIGCONT)
        return True

    def gone(self) -> None:
        """After its death nobody that it started lives on."""
        began = time.monotonic()
        while orphans := self.family():
            assert time.monotonic() - began < 60, f"they outlived their driver: {orphans}"
            time.sleep(0.05)


def _leads(pid: int) -> bool:
    """Whether a process leads its group: a child does, what it forked does not."""
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def struck(driver: Driver, victim: str, seen: Callable[[], None]) -> bool:
    """Kill the victim at a random moment; False when the run ended before."""
    start, after, jitter = driver.lines(), random.choice((0, 0, 1, 2, 4)), random.uniform(0, 1.0)
    if not driver.wait_for(lambda: "cells to do" in driver.log.read_text() and driver.lines() >= start + after):
        return False
    if victim == "store":
        if not driver.wait_for(lambda: any((driver.folder / "out" / ".incoming").iterdir())):
            return False
        victim = random.choice(("driver", "child"))
    elif victim == "mlflow":
        before = written(driver.folder / "out")
        if not driver.wait_for(lambda: written(driver.folder / "out") != before):
            return False
        victim = "driver"
    else:
        time.sleep(jitter)
    if not driver.wait_for(lambda: driver.kill(victim)):
        return False
    if "driver" not in victim:  # it tries again what was lost, and goes on
        told = driver.lines()
        ended = not driver.wait_for(lambda: driver.lines() > told)
        seen()
        if ended:
            return True
        driver.kill("driver")
    return True


def written(out: Path) -> float:
    """When MLflow's database was written to."""
    return max((file.stat().st_mtime for file in out.glob("mlflow.db*") if file.exists()), default=0.0)


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """The finished cells, and marks that change when one is written again."""
    plan, store = planning.build(spec.from_text(CAMPAIGN, "campaign.yaml", out.parent)), Store(out)
    entries = [entry for cell in plan.cells if (entry := store.get(cell.id))]
    return {entry.folder.name: ((stat := (entry.folder / "meta.json").stat()).st_ino, stat.st_mtime_ns) for entry in entries}


def table(out: Path) -> str:
    """results.json without the times, which no two runs share."""

    def still(value: object) -> object:
        if isinstance(value, dict):
            return {key: still(item) for key, item in value.items() if "seconds" not in key and key != "finished"}
        return [still(item) for item in value] if isinstance(value, list) else value

    return json.dumps(still(json.loads((out / "results.json").read_text())), indent=1)


def undisturbed(folder: Path) -> str:
    """The table of a run that nobody kills."""
    (folder / "forks.py").write_text(FORKS)
    plan = planning.build(spec.from_text(CAMPAIGN, "campaign.yaml", folder))
    assert len(plan.cells) >= 60
    run(plan, folder, InlineEngine(), device="cpu")
    return table(folder)


def check(out: Path, expected: str) -> None:
    """A campaign that came to its end: the table, what is left behind, and MLflow."""
    difference = difflib.unified_diff(expected.splitlines(), table(out).splitlines(), "undisturbed", "killed", lineterm="", n=1)
    assert not (lines := list(difference)), "\n".join(lines[:40])
    strays = [path for path in out.rglob("*") if re.search(r"\.partial$|^\..+\.[0-9a-f]{8}$", path.name)]
    strays += [*(out / ".incoming").iterdir(), *((out / "checkpoints").iterdir() if (out / "checkpoints").is_dir() else ())]
    assert not strays, strays
    with sqlite3.connect(out / "mlflow.db") as database:
        runs = Counter(
            database.execute(
                "select k.value, c.value from runs r join tags k on k.run_uuid = r.run_uuid and k.key = 'robustkd.kind' "
                "left join tags c on c.run_uuid = r.run_uuid and c.key = 'robustkd.cell_id' where r.lifecycle_stage = 'active'"
            )
        )
        unfinished = database.execute(
            "select count(*) from runs where status != 'FINISHED' and lifecycle_stage = 'active'"
        ).fetchone()
    results = json.loads((out / "results.json").read_text())
    cells = {("cell", cell["cell_id"]) for cell in results["cells"]}
    defenses = {("defense", f"{row['defense']}/{row['seed']}") for row in results["defenses"]}
    trends = runs.pop(("trend", None))  # how each defense moved from one execution to the next: a run of its own, no cell's
    assert trends == len({row["defense"] for row in results["defenses"]}), trends
    assert set(runs) == cells | defenses | {("campaign", None)}
    assert set(runs.values()) == {1}
    assert unfinished == (0,)


def campaign(folder: Path, expected: str, victims: Iterator[str], kills: int, say: Callable[[str], None]) -> int:
    """One campaign, killed until it ends or ``kills`` is reached, then brought to its end; returns how often it was killed."""
    out = folder / "out"
    out.mkdir()
    known: dict[str, tuple[int, int]] = {}

    def seen() -> None:
        now = finished(out)
        again = [cell for cell, mark in known.items() if now.get(cell) != mark]
        assert not again, f"done again: {again}"
        known.update(now)

    done = 0
    while done < kills:
        victim = next(victims)
        driver = Driver(folder, "dask" if victim == "worker" else "local")
        try:
            killed = struck(driver, victim, seen)
        finally:
            driver.process.kill()
            driver.process.wait()
        driver.gone()
        seen()
        if not killed:
            assert driver.process.returncode == 0, driver.log.read_text()
            break
        done += 1
        say(f"{victim}: {len(known)} cells are finished")
    driver = Driver(folder, "local")
    second = None
    if driver.wait_for(lambda: "cells to do" in driver.log.read_text()):
        second = subprocess.run([*driver.process.args, "--no-track"], cwd=folder, capture_output=True, text=True, check=False)  # type: ignore[misc]
    driver.process.wait()
    assert driver.process.returncode == 0, driver.log.read_text()
    # The other driver came too early, and was refused, or when the first was through, and found nothing to do but to build the network
    # that code makes, as each run does.
    did = [] if second is None else [line for line in second.stderr.splitlines() if line.startswith("[")]
    assert (
        second is None
        or (second.returncode == 1 and "another run is using" in second.stderr)
        or (second.returncode == 0 and all("forks train" in line for line in did))
    ), second.stderr
    driver.gone()
    seen()
    check(out, expected)
    return done


def chaos(folder: Path, kills: int, seed: int, say: Callable[[str], None] = print) -> None:
    """Kill campaigns ``kills`` times in all; AssertionError where one does not come to its right end."""
    random.seed(seed)
    (folder / "undisturbed").mkdir()
    began = time.monotonic()
    expected = undisturbed(folder / "undisturbed")
    say(f"undisturbed, in one process: {time.monotonic() - began:.0f} s")
    victims, done = itertools.cycle(VICTIMS), 0
    for place in itertools.count():
        here = folder / f"campaign-{place}"
        here.mkdir()
        done += campaign(here, expected, victims, kills - done, say)
        say(f"campaign {place + 1} ended right after {done} of {kills} kills, {time.monotonic() - began:.0f} s")
        if done >= kills:
            return
        shutil.rmtree(here)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="robustkd-chaos-"))
    chaos(scratch, arguments.kills, arguments.seed, lambda text: print(text, flush=True))
    shutil.rmtree(scratch)
