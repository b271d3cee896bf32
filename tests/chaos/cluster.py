"""A campaign on a Dask cluster that goes wrong: each time it ends with the undisturbed table, or with one clear sentence.

The scheduler and two workers are processes of their own, started by hand, as people do it. Where Slurm's daemons are installed
(Debian: slurmctld, slurmd, munge) and this is root, a Slurm of one node is started too, and dask-jobqueue brings the workers.
In each case: what was in the store is not done again, and nobody that was started lives on.

    python tests/chaos/cluster.py [NAME ..]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from chaos import table  # beside this file

import robustkd
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.store.store import Store

CAMPAIGN = """\
version: 1
name: cluster
data: {name: digits, train: 120, test: 20}
threat: {norm: linf, eps: 0.02}
defenses:
  plain: {kind: standard, model: tiny-cnn, epochs: 10, optimiser: adam, lr: 0.01}
  robust: {kind: pgd-at, model: tiny-cnn, epochs: 10, optimiser: adam, lr: 0.01, inner: {steps: 2}}
attacks:  # a second each on what stands, so that what goes wrong does so before all cells are done
  fgsm: {kind: fgsm}
  bim: {kind: bim, steps: 1000}
  pgd: {kind: pgd, steps: 1000}
  mi: {kind: mi-fgsm, steps: 1000}
matrix: {seeds: [0, 1]}
checks: none
"""
PATIENCE = 400.0
"""Seconds without which nothing is said to hang; generous, for machines that do other things as well."""


class Case:
    """A folder with the campaign, a cluster's processes, and a driver."""

    def __init__(self, folder: Path, expected: str) -> None:
        self.folder, self.expected, self.port = folder, expected, _free_port()
        self.out, self.log = folder / "out", folder / "log.txt"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.seen: dict[str, tuple[int, int]] = {}
        (folder / "c.yaml").write_text(CAMPAIGN)
        self.profile(f"{{kind: dask, address: 'tcp://127.0.0.1:{self.port}', scheduler_minutes: 3}}")

    def profile(self, engine: str) -> None:
        (self.folder / "p.yaml").write_text(f"engine: {engine}\nlimits: {{retries: 5, retry_wait: 0.1}}\n")

    def start(self, argv: list[str], path: Path | None = None) -> subprocess.Popen[bytes]:
        """A process in a group of its own; ``path`` is searched for modules first."""
        environment = dict(os.environ)
        if path:
            environment["PYTHONPATH"] = os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])
        with (self.folder / "processes.txt").open("a") as log:
            process = subprocess.Popen(argv, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.processes.append(process)
        return process

    def scheduler(self) -> subprocess.Popen[bytes]:
        argv = ["-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard"]
        started = self.start([sys.executable, *argv])
        self.until(lambda: _answers(self.port), "the scheduler starts")
        return started

    def worker(self, name: str, path: Path | None = None, before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        address = f"tcp://127.0.0.1:{self.port}"
        argv = ["-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard", "--name", name]
        return self.start([*before, sys.executable, *argv, "--death-timeout", "300"], path)

    def driver(self) -> subprocess.Popen[bytes]:
        argv = ["-m", "robustkd", "run", "c.yaml", "--profile", "p.yaml", "--out", "out", "--device", "cpu", "--no-track"]
        with self.log.open("w") as log:
            started = subprocess.Popen([sys.executable, *argv], cwd=self.folder, stdout=log, stderr=log, start_new_session=True)
        self.processes.append(started)
        return started

    def until(self, what: Callable[[], bool], why: str) -> None:
        began = time.monotonic()
        while not what():
            assert time.monotonic() - began < PATIENCE, f"{why}: not within {PATIENCE:.0f} s\n{self.said}"
            time.sleep(0.05)

    def cells(self, count: int) -> None:
        """Wait until so many cells are said to be finished, and note what is in the store."""
        self.until(lambda: len(re.findall(r"^\[\d+/\d+\]", self.said, re.MULTILINE)) >= count, f"{count} cells")
        self.look()

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def look(self) -> None:
        """Note the finished cells; none of those that were there may have been written again."""
        store = Store(self.out)
        entries = [entry for cell in planning.build(_campaign(self.out)).cells if (entry := store.get(cell.id))]
        stats = {entry.folder.name: (entry.folder / "meta.json").stat() for entry in entries}
        now = {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}
        again = [name for name, mark in self.seen.items() if now.get(name) != mark]
        assert not again, f"done again: {again}"
        self.seen |= now

    def ends_with_the_table(self, driver: subprocess.Popen[bytes]) -> None:
        self.until(lambda: driver.poll() is not None, "the driver ends")
        assert driver.returncode == 0, self.said
        self.look()
        assert table(self.out) == self.expected

    def ends_with(self, driver: subprocess.Popen[bytes], sentence: str, code: int, within: float) -> None:
        began = time.monotonic()
        self.until(lambda: driver.poll() is not None, "the driver ends")
        assert time.monotonic() - began < within, f"after {time.monotonic() - began:.0f} s:\n{self.said}"
        assert driver.returncode == code, self.said
        assert sentence in self.said, self.said
        assert "Traceback" not in self.said, self.said

    def end(self) -> None:
        for process in self.processes:
            _kill(process)


def undisturbed(case: Case) -> None:
    case.scheduler()
    case.worker("a"), case.worker("b")
    case.ends_with_the_table(case.driver())


def worker_killed(case: Case) -> None:
    case.scheduler()
    first = case.worker("a")
    case.worker("b")
    driver = case.driver()
    case.cells(2)
    _kill(first)
    case.ends_with_the_table(driver)


def scheduler_restarted(case: Case) -> None:
    scheduler = case.scheduler()
    case.worker("a"), case.worker("b")
    driver = case.driver()
    case.cells(2)
    _kill(scheduler)
    case.until(lambda: "the Dask scheduler does not answer" in case.said, "it says that it waits")
    time.sleep(20)
    case.scheduler()
    case.worker("c")  # those that were there may have ended with their scheduler
    case.ends_with_the_table(driver)


def scheduler_suspended(case: Case) -> None:
    """SIGSTOP: its connections stay open, and nothing answers."""
    scheduler = case.scheduler()
    case.worker("a"), case.worker("b")
    driver = case.driver()
    case.cells(2)
    os.killpg(scheduler.pid, signal.SIGSTOP)
    time.sleep(60)
    os.killpg(scheduler.pid, signal.SIGCONT)
    case.ends_with_the_table(driver)


def scheduler_suspended_for_good(case: Case) -> None:
    case.profile(f"{{kind: dask, address: 'tcp://127.0.0.1:{case.port}', scheduler_minutes: 0.5}}")
    scheduler = case.scheduler()
    case.worker("a")
    driver = case.driver()
    case.cells(2)
    os.killpg(scheduler.pid, signal.SIGSTOP)
    case.ends_with(driver, "the Dask scheduler is gone", 3, 150)
    assert (case.out / "results.json").exists()
    case.look()


def scheduler_gone(case: Case) -> None:
    case.profile(f"{{kind: dask, address: 'tcp://127.0.0.1:{case.port}', scheduler_minutes: 0.2}}")
    scheduler = case.scheduler()
    case.worker("a")
    driver = case.driver()
    case.cells(2)
    _kill(scheduler)
    case.ends_with(driver, "the Dask scheduler is gone", 3, 60)
    assert (case.out / "results.json").exists()
    assert (case.out / "report.html").exists()
    case.look()


def driver_killed(case: Case) -> None:
    case.scheduler()
    case.worker("a"), case.worker("b")
    driver = case.driver()
    case.cells(3)
    _kill(driver)
    time.sleep(2)
    case.look()
    case.ends_with_the_table(case.driver())
    assert "finished before" in case.said


def plugin_of_another_version(case: Case) -> None:
    overlay = case.folder / "overlay"
    shutil.copytree(Path(robustkd.__file__).parent, overlay / "robustkd", ignore=shutil.ignore_patterns("__pycache__"))
    (fgsm,) = overlay.rglob("fgsm.py")
    changed = re.sub(r'(?m)^(\s+version) = ".*"', r'\1 = "of-chaos"', fgsm.read_text())
    assert changed != fgsm.read_text()
    fgsm.write_text(changed)
    case.scheduler()
    case.worker("a"), case.worker("other", overlay)
    case.ends_with_the_table(case.driver())


def robustkd_of_another_version(case: Case) -> None:
    overlay = case.folder / "overlay" / "robustkd-99.0.dist-info"
    overlay.mkdir(parents=True)
    (overlay / "METADATA").write_text("Metadata-Version: 2.1\nName: robustkd\nVersion: 99.0\n")
    case.scheduler()
    case.worker("other", overlay.parent)
    case.ends_with(case.driver(), "has robustkd 99.0, the campaign was planned with robustkd", 3, 60)


def worker_without_the_folder(case: Case) -> None:
    if os.getuid() or subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        raise Skipped("no rights for a mount of its own (unshare -m)")
    case.out.mkdir()
    hidden = ("unshare", "-m", "sh", "-c", f'mount -t tmpfs none "{case.out}" && exec "$@"', "worker")
    case.scheduler()
    case.worker("blind", before=hidden)
    case.ends_with(case.driver(), f"the results folder {case.out} is not there", 3, 90)


def slurm(case: Case) -> None:
    """Both the wrong partition and the job at its walltime: the daemons start once."""
    with _slurm(case):
        keys = f"cores: 1, memory: 2GB, interface: lo, python: {sys.executable}"
        case.profile(f'{{kind: dask, cluster: {{kind: slurm, jobs: 1, {keys}, queue: nosuch, walltime: "00:01:00"}}}}')
        case.ends_with(case.driver(), "the batch system takes no job: sbatch: error:", 2, 60)
        case.profile(f'{{kind: dask, cluster: {{kind: slurm, jobs: 1, {keys}, queue: chaos, walltime: "00:01:00"}}}}')
        driver = case.driver()
        case.cells(1)
        jobs = subprocess.run(["squeue", "-h", "-o", "%i"], capture_output=True, text=True, check=True).stdout.split()
        # What Slurm does at the walltime; on a quick machine the campaign would be over before.
        subprocess.run(["scancel", "--signal=KILL", "--full", *jobs], check=False)
        case.ends_with_the_table(driver)


class Skipped(Exception):
    """A case needs what is not here."""


CASES = (
    undisturbed, worker_killed, scheduler_restarted, scheduler_suspended, scheduler_suspended_for_good, scheduler_gone,
    driver_killed, plugin_of_another_version, robustkd_of_another_version, worker_without_the_folder, slurm,
)  # fmt: skip

SLURM = """\
ClusterName=chaos
SlurmctldHost={host}
SlurmctldPort={control}
SlurmdPort={daemon}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
OverTimeLimit=0
NodeName={host} CPUs={cores} RealMemory=4000 State=UNKNOWN
PartitionName=chaos Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def _slurm(case: Case) -> Iterator[None]:
    """A Slurm of one node, on the loopback interface."""
    daemons = [shutil.which(name, path="/usr/sbin:/usr/bin") for name in ("munged", "slurmctld", "slurmd")]
    if not all(daemons) or os.getuid() or importlib.util.find_spec("dask_jobqueue") is None:
        raise Skipped("apt-get install slurmctld slurmd munge, pip install dask-jobqueue, and be root")
    folder, host = case.folder / "slurm", socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    settings = {"host": host, "control": _free_port(), "daemon": _free_port(), "folder": folder, "cores": os.cpu_count()}
    (folder / "slurm.conf").write_text(SLURM.format(**settings))
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    munged, slurmctld, slurmd = map(str, daemons)
    files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    case.start([munged, "--foreground", "--force", f"--socket={folder}/munge.socket", *files])
    case.until((folder / "munge.socket").exists, "munge starts")
    case.start([slurmctld, "-D"])
    case.start([slurmd, "-D", "-N", host])

    def idle() -> bool:
        done = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False)
        return "idle" in done.stdout

    case.until(idle, "Slurm starts")
    try:
        yield
    finally:
        subprocess.run(["scancel", "-u", "root"], check=False)
        time.sleep(2)
        del os.environ["SLURM_CONF"]


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _campaign(folder: Path) -> spec.Campaign:
    return spec.from_text(CAMPAIGN, "c.yaml", folder)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def main() -> None:
    """Run the cases that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {case.__name__.replace("_", "-"): case for case in CASES}
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    names = parser.parse_args().names or list(known)
    scratch = Path(tempfile.mkdtemp(prefix="robustkd-cluster-"))
    (quiet := scratch / "quiet").mkdir()
    run(planning.build(_campaign(quiet)), quiet, InlineEngine(), device="cpu")
    expected, failed = table(quiet), 0
    for name in names:
        (folder := scratch / name).mkdir()
        case, began = Case(folder, expected), time.monotonic()
        try:
            known[name](case)
            outcome = "right"
        except Skipped as reason:
            outcome = f"skipped: {reason}"
        except AssertionError as error:
            failed += 1
            outcome = f"FAILED: {error}"
        finally:
            case.end()
        print(f"{name}: {outcome} ({time.monotonic() - began:.0f} s)", flush=True)
    if failed:
        sys.exit(f"{failed} of {len(names)} cases failed; their folders are in {scratch}")
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
