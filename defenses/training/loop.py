"""The training loop of every defense. It exists once, here.

A defense hands over a freshly initialised target, a ``Recipe`` (the loss) and ``TrainParams``. The loop keeps four promises:

- everything comes from ``context.seed``: order, augmentation and inner maximisation are functions of (seed, epoch, sample), and
  what a network draws from torch's generator (dropout) of (seed, epoch, step). Nothing depends on draws made before, so
- a training that is killed at any instant and run again ends, on a CPU, with the same bits;
- the epoch to deploy is chosen on ``context.validation``, and never one that the recipe holds for broken;
- a loss that is not finite stops the training before it reaches the weights.

Where several processes train together (``data_parallel``), each does its share of every minibatch and of the validation.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from robustkd.contracts import FitContext, TargetError, UsageError
from robustkd.defenses.training.augment import crop_flip
from robustkd.defenses.training.average import WeightAverage
from robustkd.defenses.training.batches import Minibatch, Samples, epoch_order
from robustkd.defenses.training.checkpoint import Checkpoint, Snapshot
from robustkd.defenses.training.data_parallel import SMALLEST_SHARE, World, learnt
from robustkd.defenses.training.optim import base_lr, decay, optimiser
from robustkd.defenses.training.params import TrainParams
from robustkd.defenses.training.recipe import Recipe, Trained
from robustkd.defenses.training.seeding import derived_seed, preserved_rng
from robustkd.defenses.training.selection import Validation, rank
from robustkd.lazy import torch
from robustkd.targets import ImageTarget
from robustkd.targets.layout import to_channels_last

if TYPE_CHECKING:
    from torch import Tensor, nn

CHECKPOINT_SECONDS = 60.0
"""How much work a kill may cost: inside an epoch that is longer, a checkpoint is written as often as this."""


def train(
    context: FitContext,
    target: Trained,
    recipe: Recipe[Trained],
    settings: TrainParams,
    *,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Trained:
    """Train ``target`` in place and return it, in evaluation mode, with the weights of the selected epoch.

    Each epoch's metrics go to ``context.log``: ``train_loss``, the recipe's own, ``validation_accuracy``,
    ``validation_robust_accuracy`` (where ``recipe.threat`` is set), ``lr`` and ``seconds``. A resumed training reports the
    finished epochs again, so that the process that ends it has seen the whole curve.

    Args:
        context: data, seed, device, checkpoints and log.
        target: freshly initialised; the same initialisation when it is called again after a kill.
        recipe: the loss.
        settings: the defense's parameters, all of which enter the checkpoint's identity.
        checkpoint_seconds: time between checkpoints inside an epoch; one is written at the end of each epoch anyway.

    Raises:
        TargetError: loss or logits are not finite any more.
        UsageError: the minibatches cannot be shared among so many processes.
    """
    _refuse_too_many(World.here(), recipe, settings)
    training = _Training(context, target, recipe, settings)
    checkpoint = Checkpoint(context.checkpoints, _identity(context, target, recipe, settings))
    saved = checkpoint.read()
    if saved is not None:
        training.restore(saved)
    for epoch, metrics in enumerate(training.progress.history):
        context.log(epoch, metrics)
    with preserved_rng(context.device):
        while training.progress.epoch < settings.epochs and not training.progress.collapsed:
            training.run_epoch(checkpoint, checkpoint_seconds)
            training.keep(checkpoint)
            context.log(training.progress.epoch - 1, training.progress.history[-1])
    training.deploy()
    return target


@dataclass
class _Progress:
    """Where a training is: all of its state that is not a tensor.

    Attributes:
        epoch, step: what comes next.
        seen: samples of the running epoch so far; ``sums`` and ``seconds`` are about them.
        history: metrics of the finished epochs.
        best: the rank of the selected epoch.
        collapsed: the recipe found the last epoch broken: the training is over.
    """

    epoch: int = 0
    step: int = 0
    seen: int = 0
    seconds: float = 0.0
    averaged: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best: list[float] = field(default_factory=list)
    collapsed: bool = False


class _Training:
    """One training: the mutable middle of ``train``."""

    def __init__(self, context: FitContext, target: ImageTarget, recipe: Recipe[Any], settings: TrainParams) -> None:
        self.seed, self.device, self.world = context.seed, context.device, World.here()
        self.target, self.recipe, self.settings = target, recipe, settings
        target.to(self.device)
        self._layout = torch.preserve_format
        if self.device.type == "cuda":
            blank = torch.zeros(2, *target.input_shape, device=self.device)
            self._layout = torch.channels_last if to_channels_last(target.module, blank) else self._layout
        self._bf16 = settings.precision == "bf16" or (
            settings.precision == "auto" and self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        )
        self.data = Samples(context.train, self.device)
        self.validation = Validation(context, settings.validation_cap, recipe.threat)
        self.optimiser = optimiser(settings, target.module.parameters())
        self.average = None if settings.ema is None else WeightAverage(target.module, settings.ema)
        self.best: dict[str, Tensor] = {}
        self.progress = _Progress()

    def run_epoch(self, checkpoint: Checkpoint, checkpoint_seconds: float) -> None:
        """The steps of the running epoch that are still to do, then its measurement."""
        now = self.progress
        started, saved = time.monotonic() - now.seconds, time.monotonic()
        factor = decay(self.settings, now.epoch)
        for group in self.optimiser.param_groups:
            group["lr"] = base_lr(self.settings) * factor
        self.recipe.start_epoch(now.epoch, factor)
        self.target.module.train()
        smallest = SMALLEST_SHARE * self.world.size
        batches = epoch_order(len(self.data), self.settings.batch_size, self.seed, now.epoch, smallest)
        order = [rows for rows in batches for _ in range(self.recipe.replays)]
        while now.step < len(order):
            self._step(order[now.step])
            now.seconds = time.monotonic() - started
            if time.monotonic() - saved >= checkpoint_seconds and now.step < len(order):
                self.keep(checkpoint)
                saved = time.monotonic()
        self._finish_epoch(base_lr(self.settings) * factor, started)

    def _step(self, rows: Tensor) -> None:
        now = self.progress
        share = f"/{self.world.rank}" if self.world.rank else ""
        torch.manual_seed(derived_seed(self.seed, f"step/{now.epoch}/{now.step}{share}"))
        batch = self._minibatch(rows)
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
                loss, measured = self.recipe.loss(self.target, batch)
        except TargetError as error:
            fix = "; ".join(filter(None, (self._calmer(), error.fix)))
            raise TargetError(f"{self._here()}: {error.message}", fix=fix) from error
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        values = torch.stack([loss.detach().float(), *(value.detach().float() for value in measured.values())])
        batch.together([*learnt(self.target.module), values])
        # One transfer for all numbers of the step: each would wait for the device.
        metrics = dict(zip(("train_loss", *measured), values.tolist(), strict=True))
        if not math.isfinite(metrics["train_loss"]):
            raise TargetError(f"{self._here()}: the loss is {metrics['train_loss']}", fix=self._calmer())
        self.optimiser.step()
        if self.average is not None:
            self.average.update(self.target.module)
        self.recipe.after_step(metrics)
        for name, value in metrics.items():
            now.sums[name] = now.sums.get(name, 0.0) + value * len(rows)
        now.seen += len(rows)
        now.step += 1

    def _minibatch(self, rows: Tensor) -> Minibatch:
        mine = self.world.share(rows)
        x, y = self.data.take(mine)
        together = partial(self.world.average, weight=len(mine) / len(rows))
        batch = Minibatch(x, y, mine.to(self.device), self.seed, self.progress.epoch, together)
        if self.settings.augment == "crop-flip":
            x = crop_flip(x, batch.rng("augment"))
        return replace(batch, x=x.contiguous(memory_format=self._layout))

    def _finish_epoch(self, lr: float, started: float) -> None:
        now = self.progress
        metrics = {name: total / now.seen for name, total in now.sums.items()}
        with self._averaged():
            metrics |= self.validation.measure(self.target)
            now.collapsed = self.recipe.collapsed([*now.history, metrics])
            # Of equal epochs the later: it has seen more of a falling learning rate.
            better = self.settings.selection == "last" or rank(metrics) >= now.best
            if better and not now.collapsed:
                now.best, self.best = rank(metrics), _copied(self.target.module)
        metrics |= {"lr": lr, "seconds": time.monotonic() - started}
        now.history.append(metrics)
        now.epoch, now.step, now.seen, now.seconds, now.sums = now.epoch + 1, 0, 0, 0.0, {}

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The weights that would be deployed now are in the target: the average's, where there is one."""
        if self.average is None:
            yield
            return
        trained = _copied(self.target.module)
        self.target.module.load_state_dict(self.average.weights)
        try:
            yield
        finally:
            self.target.module.load_state_dict(trained)

    def deploy(self) -> None:
        """Put the selected epoch's weights into the target."""
        self.target.module.load_state_dict(self.best)
        self.target.module.eval()

    def keep(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint; one process does."""
        if self.world.leads:
            checkpoint.write(self.snapshot())

    def snapshot(self) -> Snapshot:
        """All that ``restore`` needs."""
        groups = {"model": self.target.module.state_dict(), "best": self.best, "recipe": self.recipe.tensors()}
        if self.average is not None:
            groups["average"] = self.average.weights
            self.progress.averaged = self.average.steps
        for number, state in self.optimiser.state_dict()["state"].items():
            groups[f"optimiser/{number}"] = {name: value for name, value in state.items() if value is not None}
        tensors = {f"{group}/{name}": tensor for group, members in groups.items() for name, tensor in members.items()}
        return Snapshot(tensors, {"progress": asdict(self.progress), "recipe": self.recipe.state_dict()})

    def restore(self, snapshot: Snapshot) -> None:
        """Go on where ``snapshot`` was taken."""
        self.progress = _Progress(**snapshot.facts["progress"])
        self.recipe.load_state_dict(snapshot.facts["recipe"])
        groups: dict[str, dict[str, Tensor]] = {}
        for path, tensor in snapshot.tensors.items():
            group, _, name = path.removeprefix("optimiser/").partition("/")
            groups.setdefault(group, {})[name] = tensor
        self.target.module.load_state_dict(groups.pop("model"))
        self.best = self._on_device(groups.pop("best", {}))
        self.recipe.load_tensors(self._on_device(groups.pop("recipe", {})))
        if self.average is not None:
            self.average.weights, self.average.steps = self._on_device(groups.pop("average")), self.progress.averaged
        # The optimiser brings its state to the device itself, all but Adam's step counts, which must stay on the host.
        state = {int(number): values for number, values in groups.items()}
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": state})

    def _on_device(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in state.items()}

    def _here(self) -> str:
        return f"training broke down in epoch {self.progress.epoch}, step {self.progress.step}"

    def _calmer(self) -> str:
        return f"lower lr (it is {base_lr(self.settings):g})"


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _refuse_too_many(world: World, recipe: Recipe[Any], settings: TrainParams) -> None:
    if world.size > 1 and not recipe.divisible:
        raise UsageError("this defense cannot be trained by several processes together", fix="train it with one process")
    if world.size > 1 and settings.batch_size < SMALLEST_SHARE * world.size:
        raise UsageError(
            f"a minibatch of {settings.batch_size} cannot be shared among {world.size} processes",
            fix=f"use a batch_size of at least {SMALLEST_SHARE * world.size}, or fewer processes",
        )


def _identity(context: FitContext, target: ImageTarget, recipe: Recipe[Any], settings: TrainParams) -> str:
    """A hash of what decides a training's course; a checkpoint of another course is not taken up."""
    shapes = {name: list(tensor.shape) for name, tensor in target.module.state_dict().items()}
    course = [
        type(recipe).__qualname__,
        settings.model_dump(mode="json"),
        None if recipe.threat is None else asdict(recipe.threat),
        [context.seed, context.train.digest(), context.validation.digest()],
        shapes,
    ]
    return hashlib.sha256(json.dumps(course, sort_keys=True).encode()).hexdigest()
