"""Trainings on labelled images: passes over the training data, each followed by a measurement on the validation data.

A defense hands over a freshly initialised target, a ``Recipe`` (the loss) and ``TrainParams``. Order, augmentation and inner
maximisation are functions of (seed, epoch, sample), and what a network draws from torch's generator (dropout) of (seed, epoch,
step). The deployed epoch is chosen on ``context.validation``, and is never one that the recipe calls collapsed.

Where several processes train together (``data_parallel``), each does its share of every minibatch and of the validation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from robustkd.contracts import FitContext, UsageError
from robustkd.contracts.json_value import JsonObject
from robustkd.defenses.training.augment import crop_flip
from robustkd.defenses.training.average import WeightAverage, recompute_batch_norm
from robustkd.defenses.training.batches import Minibatch, Samples, epoch_order
from robustkd.defenses.training.checkpoint import Checkpoint, group, grouped
from robustkd.defenses.training.data_parallel import SMALLEST_SHARE, World, synced_tensors
from robustkd.defenses.training.loop import CHECKPOINT_SECONDS, FORMAT, Training, run
from robustkd.defenses.training.optim import base_lr, decay, optimiser
from robustkd.defenses.training.params import TrainParams
from robustkd.defenses.training.recipe import Recipe, Trained
from robustkd.defenses.training.selection import Validation, rank
from robustkd.lazy import torch
from robustkd.targets import ImageTarget
from robustkd.targets.layout import to_channels_last
from robustkd.targets.training import bfloat16

if TYPE_CHECKING:
    from torch import Tensor, nn


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
    ``validation_robust_accuracy`` (where ``recipe.threat`` is set), ``lr`` and ``seconds``.

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
    require_shares(World.here(), recipe, settings)
    training = _EpochTraining(context, target, recipe, settings)
    checkpoint = Checkpoint(context.checkpoints, _identity(context, target, recipe, settings))
    run(context, training, checkpoint, checkpoint_seconds)
    target.module.load_state_dict(training.best)
    target.module.eval()
    return target


class _EpochTraining(Training):
    """Passes over labelled images. An interval of the loop is an epoch.

    Attributes:
        best: the weights of the selected epoch, and ``best_rank`` what they were selected by.
    """

    loss_name = "train_loss"
    checkpoint_each_report = True

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
        averages = settings.ema is not None or settings.swa is not None
        self.average = WeightAverage(target.module, settings.ema) if averages else None
        self.best: dict[str, Tensor] = {}
        self.best_rank: list[float] = []
        self.steps_per_epoch = recipe.replays * len(self._batches(0))
        self.reports = range(self.steps_per_epoch, self.steps_per_epoch * settings.epochs + 1, self.steps_per_epoch)
        self._order: list[Tensor] = []

    def lr(self, step: int) -> float:
        return base_lr(self.settings) * decay(self.settings, step // self.steps_per_epoch)

    def purpose(self, step: int) -> str:
        epoch, number = divmod(step, self.steps_per_epoch)
        share = f"/{self.world.rank}" if self.world.rank else ""
        return f"step/{epoch}/{number}{share}"

    def position(self, step: int) -> str:
        epoch, number = divmod(step, self.steps_per_epoch)
        return f"training broke down in epoch {epoch}, step {number}"

    def start_interval(self, number: int) -> None:
        self.recipe.start_epoch(number, decay(self.settings, number))
        self.target.module.train()
        self._order = [rows for rows in self._batches(number) for _ in range(self.recipe.replays)]

    def backward(self, step: int, seed: int) -> tuple[dict[str, float], int]:
        epoch, number = divmod(step, self.steps_per_epoch)
        rows = self._order[number]
        batch = self._minibatch(rows, epoch)
        if number + 1 < len(self._order):
            self.data.expect(self.world.share(self._order[number + 1]))
        with bfloat16(self.device, enabled=self._bf16):
            loss, measured = self.recipe.loss(self.target, batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        values = torch.stack([loss.detach().float(), *(value.detach().float() for value in measured.values())])
        batch.all_reduce([*synced_tensors(self.target.module), values])
        # One transfer for all numbers of the step: each would wait for the device.
        return dict(zip((self.loss_name, *measured), values.tolist(), strict=True)), len(rows)

    def after_step(self, metrics: Mapping[str, float]) -> None:
        if self.average is not None and self.settings.ema is not None:
            self.average.update(self.target.module)
        self.recipe.after_step(metrics)

    def measure(self, means: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> dict[str, float]:
        first = self.settings.swa
        if self.average is not None and first is not None and len(history) >= round(first * self.settings.epochs):
            self.average.update(self.target.module)
        with self._averaged(len(history)):
            metrics = {**means, **self.validation.measure(self.target)}
            self.stopped = self.recipe.collapsed([*history, metrics])
            # Of equal epochs the later: it has seen more of a falling learning rate.
            better = self.settings.selection == "last" or rank(metrics, self.settings.selection) >= self.best_rank
            if better and not self.stopped:
                self.best_rank, self.best = rank(metrics, self.settings.selection), _copied(self.target.module)
        return metrics

    def tensors(self) -> dict[str, Tensor]:
        average = {} if self.average is None else grouped("average", self.average.weights)
        model, best = grouped("model", self.target.module.state_dict()), grouped("best", self.best)
        return model | best | average | grouped("recipe", self.recipe.tensors())

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.target.module.load_state_dict(group("model", tensors))
        self.best = self._on_device(group("best", tensors))
        self.recipe.load_tensors(self._on_device(group("recipe", tensors)))
        if self.average is not None:
            self.average.weights = self._on_device(group("average", tensors))

    def state_dict(self) -> JsonObject:
        averaged = 0 if self.average is None else self.average.steps
        return {
            "best_rank": self.best_rank,
            "stopped": self.stopped,
            "averaged": averaged,
            "recipe": self.recipe.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best_rank, self.stopped = state["best_rank"], state["stopped"]
        if self.average is not None:
            self.average.steps = state["averaged"]
        self.recipe.load_state_dict(state["recipe"])

    def _batches(self, epoch: int) -> list[Tensor]:
        smallest = SMALLEST_SHARE * self.world.size
        return epoch_order(len(self.data), self.settings.batch_size, self.seed, epoch, smallest)

    def _minibatch(self, rows: Tensor, epoch: int) -> Minibatch:
        mine = self.world.share(rows)
        x, y = self.data.take(mine)
        all_reduce = partial(self.world.average, weight=len(mine) / len(rows))
        batch = Minibatch(x, y, mine.to(self.device), self.seed, epoch, all_reduce, self.data.soft(mine))
        if self.settings.augment == "crop-flip":
            x = crop_flip(x, batch.rng("augment"))
        return replace(batch, x=x.contiguous(memory_format=self._layout))

    @contextmanager
    def _averaged(self, epoch: int) -> Iterator[None]:
        """Puts the weights that would be deployed now into the target: the average's, where there is one."""
        if self.average is None or not self.average.steps:
            yield
            return
        trained = _copied(self.target.module)
        self.target.module.load_state_dict(self.average.weights)
        if self.settings.swa is not None:
            images = (self._minibatch(rows, epoch).x for rows in self._batches(epoch))
            recompute_batch_norm(self.target.module, images)
        try:
            yield
        finally:
            self.target.module.load_state_dict(trained)

    def _on_device(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in state.items()}


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def require_shares(world: World, recipe: Recipe[Any], settings: TrainParams) -> None:
    """Refuse a training that cannot be shared among the processes of ``world``.

    Raises:
        UsageError: the recipe does not support it, or the minibatches are too small.
    """
    if world.size > 1 and not recipe.supports_data_parallel:
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
        FORMAT,
        type(recipe).__qualname__,
        settings.model_dump(mode="json"),
        None if recipe.threat is None else asdict(recipe.threat),
        [context.seed, context.train.digest(), context.validation.digest()],
        shapes,
    ]
    return hashlib.sha256(json.dumps(course, sort_keys=True).encode()).hexdigest()
