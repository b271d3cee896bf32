"""How implementations are compared: the same network, the same images, a process of their own, one judge.

Passes are counted from outside, around the network, for everybody alike: a pass is one image through the network, once.
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import platform
import random
import resource
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, TypedDict, get_args

import click
import numpy as np
import torch
from _counted import Counted
from _job import Job
from torch import Tensor, nn

from robustkd import plugins
from robustkd.contracts import Norm, PerceptualBudget, ThreatModel
from robustkd.contracts.json_value import JsonObject, JsonValue
from robustkd.targets import ClassifierTarget, PassCounter
from robustkd.targets.features import LayerFeatures

RESULTS = Path(__file__).with_name("results")
SLACK = 1e-4
"""Share of eps by which an implementation may overshoot: rounding of the libraries' own projections."""
JITTER = 1e-6
"""By which each seed but 0 moves the images: a search that hangs on rounding, as on a network whose gradients mislead, shows it."""


class Measurement(TypedDict, total=False):
    """What was measured of an implementation, beside the fields of its ``Job``. Where it failed, ``error`` alone says why."""

    comparison: str
    implementation: str
    network: str
    images: int
    eps: float
    budget: JsonObject
    seed: int
    threads: int
    device: str
    wall: float
    cpu: float
    forwards: float
    backwards: float
    peak_mib: float
    clean_accuracy: float
    robust_accuracy: float
    success: float
    median_norm: float
    mean_norm: float
    robust_accuracies: list[float]
    median_norms: list[float]
    error: str
    limit: float
    machine: str
    version: str
    first: int
    precision: str
    share_of_time: float
    share_of_passes: float
    seconds: float
    ms_per_step: float
    ratio: float
    standing: str
    weights: str


class Target(TypedDict):
    """A figure that should not exceed ``at_most``, and by how much it is chance."""

    what: str
    value: float
    at_most: float
    chance: float
    met: bool


def measure(job: Job, *, limit: float | None = None) -> Measurement:
    """Run a job in a fresh process. The row says what happened also when that was an exception or the time limit."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(job, sender))
    child.start()
    sender.close()
    try:
        row = receiver.recv() if receiver.poll(limit) else {"error": f"not done after {limit:.0f} s", "limit": limit}
    except EOFError:
        row = {"error": f"the process died (exit code {child.exitcode})"}
    child.terminate()
    child.join()
    return {**asdict(job), **row}


def _child(job: Job, sender: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with quiet():
            row = _run(job)
    except Exception as error:
        traceback.print_exc()
        row = {"error": f"{type(error).__name__}: {error}"}
    sender.send(row)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what the peers print to standard output inside the block."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(job: Job) -> Measurement:
    import _comparisons
    import _networks

    torch.set_num_threads(job.threads)
    network, x, y = _networks.load(job.network, job.first + job.images, job.device)
    x, y = x[job.first :], y[job.first :]
    if job.seed:
        x = (x + JITTER * torch.randn(x.shape, generator=torch.Generator().manual_seed(job.seed)).to(x)).clamp(0, 1)
    model = Counted(network).eval()
    contend, comparison = _comparisons.implementation(job), _comparisons.COMPARISONS[job.comparison]
    fooled = network if comparison.judged_on is None else _networks.load(comparison.judged_on, 1, job.device)[0]
    torch.manual_seed(job.seed)
    np.random.seed(job.seed)
    random.seed(job.seed)
    model(x[:8].clone().requires_grad_()).sum().backward()  # the first pass of a process pays for set-up
    model.zero_grad()
    model.passes = PassCounter()
    before = _peak_mib(job.device)
    wall, cpu = time.perf_counter(), time.process_time()
    adversarial = contend(model, x, y)
    now(job.device)  # waits for it
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    forwards, backwards = model.passes.total
    return {
        "wall": wall,
        "cpu": cpu,
        "forwards": forwards / len(x),
        "backwards": backwards / len(x),
        "peak_mib": _peak_mib(job.device) - before,
        **judge(fooled, x, y, adversarial.detach(), comparison.norm, job.eps),
    }


def _peak_mib(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@torch.no_grad()
def distances(network: nn.Module, x: Tensor, y: Tensor, adversarial: Tensor, norm: str) -> Tensor:
    """(N,) how far anybody's adversarial images are, infinitely where one is none.

    An image that is not inside [0, 1], is not finite, or is all zero (what foolbox returns for a failed search) is a failure.
    """
    wrong = torch.cat([network(part).argmax(1) for part in adversarial.split(256)]) != y
    flat = adversarial.flatten(1)
    valid = flat.isfinite().all(1) & (flat.amin(1) >= -1e-6) & (flat.amax(1) <= 1 + 1e-6) & (flat != 0).any(1)
    delta = (flat - x.flatten(1)).double()
    if norm in ("patch", "transform"):
        far = _side(delta.view(x.shape)) if norm == "patch" else torch.zeros(len(x), dtype=torch.double, device=x.device)
        return torch.where(wrong & valid, far, torch.inf)
    if norm == "perceptual":
        return torch.where(wrong & valid, _unlike(network, x, adversarial), torch.inf)
    order = {"linf": torch.inf, "l2": 2.0, "l1": 1.0, "l0": 0.0}[norm]
    far = torch.linalg.vector_norm(delta, ord=order, dim=1)
    if norm == "l0":  # pixels, not channel values
        far = (delta.view(x.shape).abs().amax(1) > 0).flatten(1).sum(1).double()
    return torch.where(wrong & valid, far, torch.inf)


def _unlike(network: nn.Module, x: Tensor, adversarial: Tensor) -> Tensor:
    """(N,) the distances of the features that the network has at the layers of the perceptual comparisons."""
    from _threat_peers import LAYERS

    features = LayerFeatures(ClassifierTarget(network, num_classes=10, input_shape=x.shape[1:]), LAYERS)
    return PerceptualBudget(1.0, layers=LAYERS, features=features).distance(x, adversarial, {}).double()


def _side(delta: Tensor) -> Tensor:
    """(N,) the side of the smallest square around the pixels that changed."""
    changed = (delta != 0).any(1)
    sides = []
    for axis in (2, 1):
        line = changed.any(axis).long()
        first, last = line.argmax(1), line.shape[1] - 1 - line.flip(1).argmax(1)
        sides.append(torch.where(line.any(1), last - first + 1, 0))
    return torch.maximum(*sides).double()


@torch.no_grad()
def judge(network: nn.Module, x: Tensor, y: Tensor, adversarial: Tensor, norm: str, eps: float) -> Measurement:
    """Robust accuracy at eps, and the distances over the images classified rightly. ``standing`` has a 1 for each that withstands."""
    right = network(x).argmax(1) == y
    every = distances(network, x, y, adversarial, norm)
    standing = right & (every > eps * (1 + SLACK))
    far = every[right]
    return {
        "clean_accuracy": float(right.double().mean()),
        "robust_accuracy": int(standing.sum()) / len(x),
        "success": float(far.isfinite().double().mean()),
        "median_norm": float(far.median()),
        "mean_norm": float(far[far.isfinite()].mean()) if bool(far.isfinite().any()) else float("nan"),
        "standing": "".join("01"[int(one)] for one in standing),
    }


class Jobs:
    """What was measured of single jobs. Each row is written at once to the file in results/, so that a run that was stopped goes on
    where it was.

    A row counts for the same job of the same version, of the plug-in or of the peer's package, on a network of the same weights. Strength
    does not depend on the machine. Times do: ``same_machine`` says whether rows can be compared.

    Args:
        name: of the file in results/.
        device: of all jobs.
        again: forget what is there.
        minutes: of CPU time, after which no further job is begun; 0: no end.
    """

    def __init__(self, name: str, device: str = "cpu", *, again: bool = False, minutes: float = 0) -> None:
        self.file, self.device, self.left = RESULTS / f"{name}.json", device, 0
        self.ends = 60 * minutes if minutes else float("inf")
        content = json.loads(self.file.read_text()) if self.file.is_file() and not again else {}
        self.rows: list[Measurement] = content.get("jobs", [])

    def measure(self, job: Job, *, limit: float | None = None) -> Measurement | None:
        """The row of a job, from the file or measured now; None where there is no time for it."""
        wanted = {**json.loads(json.dumps(asdict(job))), "version": version(job)}
        if weights := _weights(job.network):
            wanted["weights"] = weights
        for row in self.rows:
            if all(row.get(key) == value for key, value in wanted.items()) and (
                "error" not in row or row.get("limit") == limit
            ):
                return row
        if _used() >= self.ends:
            self.left += 1
            return None
        row = measure(job, limit=limit) | {"version": wanted["version"], "machine": _named(self.device)}
        if weights:
            row["weights"] = weights
        if "error" not in row or "limit" in row:  # of a peer that is not installed, the next run asks again
            self.rows.append(row)
            _keep(self.file, self.device, [], [], self.rows)
        return row

    def write(self, rows: Sequence[Mapping[str, Any]], verdicts: Verdicts) -> None:
        """Keep the table and its targets, too, and say what is left to do."""
        _keep(self.file, self.device, rows, verdicts.lines, self.rows)
        print(f"written to {self.file}")
        if self.left:
            print(f"{self.left} runs are left: the same command goes on with them")


def version(job: Job) -> str:
    """Of what does the job: a plug-in of ours, or a peer's package."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as of_package

    import _comparisons

    if job.implementation == "robustkd":
        comparison = _comparisons.COMPARISONS[job.comparison]
        attack = plugins.make("attacks", {"kind": comparison.ours, **_comparisons.ours_of(job.budget), **comparison.params})
        if comparison.norm not in get_args(Norm):
            return f"{comparison.ours} {attack.version}"
        return f"{comparison.ours} {attack.version_for(ThreatModel(comparison.norm, job.eps))}"
    try:
        return f"{job.implementation} {of_package(job.implementation)}"
    except PackageNotFoundError:
        return job.implementation


def _weights(network: str) -> str:
    import _networks

    return _networks.weights(network)


def same_machine(rows: Iterable[Measurement]) -> bool:
    """Whether times of ``rows`` can be compared."""
    return len({row.get("machine") for row in rows}) == 1


def _used() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _named(device: str) -> str:
    it = machine(device)
    return f"{it['device']}, torch {it['torch']}"


def over_seeds(
    job: Job,
    seeds: int,
    *,
    limit: float | None = None,
    measured: Callable[..., Measurement | None] = measure,
) -> Measurement | None:
    """One row of an implementation: the means over seeds, and ``robust_accuracies`` and ``median_norms`` of each; or its first error.

    None where ``measured`` has no time for a seed.
    """
    rows: list[Measurement] = []
    for seed in range(seeds):
        row = measured(replace(job, seed=seed), limit=limit)
        if row is None or "error" in row:
            return row  # another seed would run into the same limit
        rows.append(row)
    varying = ("wall", "cpu", "forwards", "backwards", "peak_mib", "robust_accuracy", "success", "median_norm", "mean_norm")
    means = {key: statistics.fmean(row[key] for row in rows) for key in varying}
    each = {"robust_accuracies": [row["robust_accuracy"] for row in rows], "median_norms": [row["median_norm"] for row in rows]}
    return rows[0] | means | each


def now(device: torch.device | str) -> float:
    """Seconds of a clock for work on ``device``: this process's CPU time, which others do not disturb, or, where the work is done
    elsewhere, wall time, once it is done.
    """
    if torch.device(device).type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(row: Measurement) -> float:
    """What an implementation took, by the clock of ``now``."""
    return float(row["cpu" if row["device"] == "cpu" else "wall"])


def fastest(rows: Iterable[Measurement]) -> Measurement | None:
    """The peer that took the fewest ``seconds``."""
    done = [row for row in rows if "error" not in row and row["implementation"] != "robustkd"]
    return min(done, key=seconds, default=None)


def repeated(count: int, once: Callable[[], float]) -> float:
    """Call ``once`` ``count`` times and return the median of its values."""
    return statistics.median(once() for _ in range(count))


def machine(device: str = "cpu") -> dict[str, JsonValue]:
    """What the numbers were measured on."""
    from importlib.metadata import PackageNotFoundError, version

    peers = {}
    for name in ("torchattacks", "foolbox", "adv-lib", "pyautoattack", "nanogcg"):
        with contextlib.suppress(PackageNotFoundError):
            peers[name] = version(name)
    named = torch.cuda.get_device_name() if device.startswith("cuda") else _cpu()
    return {"device": named, "cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__, **peers}


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def chance(*of_seeds: Sequence[float]) -> float:
    """By how much means over seeds may differ by chance: two standard errors of their difference. 0 where a seed tells nothing of others,
    or where one is infinite.

    Args:
        of_seeds: the figures of each seed, of each of those that are compared.
    """
    several = [each for each in of_seeds if len(each) > 1 and all(map(math.isfinite, each))]
    return 2 * math.sqrt(sum(statistics.variance(each) / len(each) for each in several))


@dataclass
class Verdicts:
    """The targets of a benchmark, and whether they were met."""

    lines: list[Target] = field(default_factory=list)

    def expect(self, what: str, value: float, at_most: float, *, chance: float = 0.0) -> None:
        """Note a figure that should not exceed ``at_most``; of a miss it is said whether ``chance`` could be all of it."""
        met = bool(value <= at_most + 1e-9)
        self.lines.append({"what": what, "value": value, "at_most": at_most, "chance": chance, "met": met})

    def print(self) -> None:
        for line in self.lines:
            value, at_most, chance = line["value"], line["at_most"], line["chance"]
            told = f"  {'met   ' if line['met'] else 'MISSED'}  {line['what']}: {value:.3f} (at most {at_most:.3f})"
            print(told + (f"; chance alone is up to {chance:.3f}" if not line["met"] and value <= at_most + chance else ""))

    @property
    def all_met(self) -> bool:
        return all(line["met"] for line in self.lines)


def write(name: str, rows: Sequence[Mapping[str, Any]], verdicts: Verdicts, device: str = "cpu") -> None:
    """Keep what was measured, with the machine's name and the day."""
    file = RESULTS / f"{name}.json"
    _keep(file, device, rows, verdicts.lines)
    print(f"written to {file}")


def _keep(
    file: Path,
    device: str,
    rows: Sequence[Mapping[str, Any]],
    targets: Sequence[Target],
    jobs: Sequence[Mapping[str, Any]] = (),
) -> None:
    today = date.today().isoformat()
    content = {"machine": machine(device), "measured": today, "rows": list(rows), "targets": list(targets)} | (
        {"jobs": list(jobs)} if jobs else {}
    )
    file.parent.mkdir(exist_ok=True)
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    unfinished.replace(file)  # at once: a run that is stopped leaves the former file or the new one


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str, str]]) -> None:
    """Print rows; ``columns`` are (key, heading, format)."""
    cells = [[_cell(row, key, form) for key, _, form in columns] for row in rows]
    heads = [heading for _, heading, _ in columns]
    widths = [max(len(line[i]) for line in [heads, *cells]) for i in range(len(heads))]
    for line in [heads, *cells]:
        print(
            "  ".join(text.ljust(w) if i < 2 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True)))
        )
    for row in rows:
        if "error" in row:
            print(f"  {row['implementation']} on {row['network']}: {row['error']}")


def _cell(row: Mapping[str, Any], key: str, form: str) -> str:
    return format(row[key], form) if key in row else "-"


def conclude(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[tuple[str, str, str]],
    verdicts: Verdicts,
    device: str = "cpu",
) -> None:
    """Print the table and whether the targets were met, and keep both.

    Raises:
        click.ClickException: robustkd itself failed in a row. What was measured before is kept then.
    """
    table(rows, columns)
    verdicts.print()
    if failed := [row for row in rows if "error" in row and row["implementation"] == "robustkd"]:
        raise click.ClickException(f"{len(failed)} runs of robustkd failed, so results/{name}.json stays as it was")
    write(name, rows, verdicts, device)


COST = [
    ("network", "network", ""),
    ("implementation", "implementation", ""),
    ("wall", "wall s", ".2f"),
    ("cpu", "CPU s", ".2f"),
    ("forwards", "forwards", ".1f"),
    ("backwards", "backwards", ".1f"),
    ("peak_mib", "peak MiB", ".0f"),
]
