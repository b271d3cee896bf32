"""The training loop: steps of an optimiser, with a report, and now and then a checkpoint, on the way.

Every defense that trains goes through it: ``epochs`` runs passes over labelled images, ``steps`` runs a number of updates of any
parameters. What differs between them is a ``Training``. The loop keeps three promises:

- everything random comes from ``context.seed``: torch's generator is seeded anew for each step, so nothing depends on draws that
  were made before, and
- a training that is killed at any instant and run again ends, on a CPU, with the same bits;
- a loss that is not finite stops the training before it reaches the weights.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from robustkd.contracts import FitContext, Samples, TargetError
from robustkd.contracts.json_value import JsonObject
from robustkd.contracts.random import preserved_rng, seed_torch
from robustkd.defenses.training.checkpoint import Checkpoint, Snapshot, group, grouped
from robustkd.defenses.training.data_parallel import World
from robustkd.defenses.training.optim import load_optimiser_tensors, optimiser_tensors
from robustkd.defenses.training.seeding import derived_seed
from robustkd.targets.training import training_step

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CHECKPOINT_SECONDS = 60.0
"""How much work a kill may cost: a checkpoint is written as often as this, and at the end."""

FORMAT = 2
"""Part of each checkpoint's identity; raised when checkpoints that were written before can no longer be read."""


class Training(ABC):
    """What is minimised, over which parameters, and what is reported.

    Attributes:
        optimiser: over the parameters.
        reports: after how many steps there is a report, in rising order; the last number ends the training. An interval is the
            steps between two reports.
        loss_name: the metric that is minimised.
        stopped: whether the training ends early; set by ``measure``.
        checkpoint_each_report: whether a checkpoint is also written with each report.
    """

    loss_name: str
    checkpoint_each_report: ClassVar[bool] = False
    optimiser: torch.optim.Optimizer
    reports: Sequence[int]
    stopped: bool = False

    @abstractmethod
    def lr(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""

    @abstractmethod
    def purpose(self, step: int) -> str:
        """What the seed of a step is derived from, beside the training's seed."""

    @abstractmethod
    def position(self, step: int) -> str:
        """The beginning of an error message about a step."""

    @abstractmethod
    def backward(self, step: int, seed: int) -> tuple[dict[str, float], int]:
        """Compute the loss of a step and put its gradient into the parameters.

        Returns:
            The step's metrics, the loss among them, and their weight in the report's means.
        """

    @abstractmethod
    def measure(self, means: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The report of an interval.

        Args:
            means: the mean of each metric over the interval's steps.
            history: the reports before.
        """

    def start_interval(self, number: int) -> None:
        """Called before the first step of an interval, and again when a resumed training takes one up in the middle."""
        return None

    def after_step(self, metrics: Mapping[str, float]) -> None:
        """Called after the optimiser moved the weights, with the step's metrics."""
        return None

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All state that is tensors, the optimiser's apart."""

    @abstractmethod
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what ``tensors`` gave; these are on the CPU."""

    @abstractmethod
    def state_dict(self) -> JsonObject:
        """All other state, as plain JSON."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` gave."""


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        step: how many steps are done.
        seen: the weight of the running interval's steps so far; ``sums`` and ``seconds`` are about the same steps.
        history: the reports so far.
    """

    step: int = 0
    seen: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


def run(context: FitContext[Samples], training: Training, checkpoint: Checkpoint, checkpoint_seconds: float) -> None:
    """Train until the last report, or until the training stops itself.

    Each report goes to ``context.log``. A resumed training reports the finished intervals again, so that the process that ends it
    has seen the whole curve.

    Args:
        context: seed, device and log.
        training: in its initial state, the same one when it is called again after a kill.
        checkpoint: where the state is kept.
        checkpoint_seconds: time between checkpoints.

    Raises:
        TargetError: loss or logits are not finite any more.
    """
    progress = Progress()
    if (saved := checkpoint.read()) is not None:
        progress = _restore(training, saved)
    for number, metrics in enumerate(progress.history):
        context.log(number, metrics)
    leads, written = World.here().is_main_process, time.monotonic()
    with preserved_rng(context.device):
        while progress.step < training.reports[-1] and not training.stopped:
            interval = len(progress.history)
            started = time.monotonic() - progress.seconds
            training.start_interval(interval)
            while progress.step < training.reports[interval]:
                _step(context, training, progress)
                progress.seconds = time.monotonic() - started
                in_between = progress.step < training.reports[interval]
                if in_between and leads and time.monotonic() - written >= checkpoint_seconds:
                    checkpoint.write(_snapshot(training, progress))
                    written = time.monotonic()
            _report(training, progress, started)
            due = training.checkpoint_each_report or training.stopped or progress.step == training.reports[-1]
            if leads and (due or time.monotonic() - written >= checkpoint_seconds):
                checkpoint.write(_snapshot(training, progress))
                written = time.monotonic()
            context.log(interval, progress.history[-1])


def _step(context: FitContext[Samples], training: Training, progress: Progress) -> None:
    step = progress.step
    seed = derived_seed(context.seed, training.purpose(step))
    seed_torch(seed)
    metrics, weight = training_step(training.optimiser, training.lr(step), lambda: _backward(training, step, seed))
    training.after_step(metrics)
    for name, value in metrics.items():
        progress.sums[name] = progress.sums.get(name, 0.0) + value * weight
    progress.seen += weight
    progress.step += 1


def _backward(training: Training, step: int, seed: int) -> tuple[dict[str, float], int]:
    """What ``Training.backward`` returns; of what goes wrong, the error says where and what to do."""
    fix = f"lower lr (it is {training.lr(0):g})"
    try:
        metrics, weight = training.backward(step, seed)
    except TargetError as error:
        fix = "; ".join(filter(None, (fix, error.fix)))
        raise TargetError(f"{training.position(step)}: {error.message}", fix=fix) from error
    loss = metrics[training.loss_name]
    if not math.isfinite(loss):
        raise TargetError(f"{training.position(step)}: the loss is {loss}", fix=fix)
    return metrics, weight


def _report(training: Training, progress: Progress, started: float) -> None:
    means = {name: total / progress.seen for name, total in progress.sums.items()}
    metrics = training.measure(means, progress.history) | {"lr": training.lr(progress.step - 1)}
    progress.history.append(metrics | {"seconds": time.monotonic() - started})
    progress.seen, progress.seconds, progress.sums = 0, 0.0, {}


def _snapshot(training: Training, progress: Progress) -> Snapshot:
    tensors = training.tensors() | grouped("optimiser", optimiser_tensors(training.optimiser))
    return Snapshot(tensors, {"progress": asdict(progress), "training": training.state_dict()})


def _restore(training: Training, snapshot: Snapshot) -> Progress:
    training.load_state_dict(snapshot.facts["training"])
    training.load_tensors(snapshot.tensors)
    load_optimiser_tensors(training.optimiser, group("optimiser", snapshot.tensors))
    return Progress(**snapshot.facts["progress"])
