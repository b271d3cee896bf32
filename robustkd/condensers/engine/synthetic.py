"""Synthetic images: where they start, and the optimisation that moves their pixels.

The optimisation is the training loop of the defenses, with pixels (and what is learnt beside them) in the place of weights: it reports,
keeps a checkpoint, and ends with the same bits after a kill.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from pydantic import Field

from robustkd.condensers.engine.augmentation import ALL, Change, mirrored
from robustkd.condensers.engine.rows import SelectionParams, generator, random_rows
from robustkd.contracts import Arrays, FitContext, ModelName, Params
from robustkd.contracts.json_value import JsonObject
from robustkd.contracts.params import ModelParams
from robustkd.defenses.training.checkpoint import Checkpoint, group, grouped
from robustkd.defenses.training.loop import CHECKPOINT_SECONDS, FORMAT, Training, run
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

REPORTS = 20
StepLoss: TypeAlias = "Callable[[int, torch.Generator], Tensor]"
"""``loss(step, generator)`` is the scalar to minimise in a step; everything random comes from the generator, which is the CPU's."""


class SyntheticParams(Params):
    """Parameters of every condenser that makes images."""

    images_per_class: int = Field(10, ge=1, description="images of each class (IPC)")
    start: Literal["real", "noise"] = Field("real", description="where the pixels start: random training images, or noise")
    fyi: bool = Field(
        False,
        description="FYI: wherever the synthetic images enter a network, their mirror images enter with them (not for digits or letters)",
    )


class MatchingParams(SyntheticParams):
    """Parameters of condensers that train or draw networks of their own."""

    model: ModelName = Field("convnet", description="the architecture of the networks that images are matched in")
    model_params: ModelParams = Field(default_factory=dict)
    augment: tuple[Change, ...] = Field(
        ALL, description="changes of which each step draws one, the same for real and synthetic images; [] for none"
    )


def start_images(context: FitContext[Arrays], params: SyntheticParams) -> tuple[Tensor, Tensor]:
    """(M, C, H, W) float32 in [0, 1], and (M,) int64 labels, on the device: as many of each class as there are at most."""
    rows = random_rows(context, SelectionParams(images_per_class=params.images_per_class, share=None))
    chosen = context.train.select(rows)
    images = chosen.unit()
    if params.start == "noise":
        noise = generator(context, "noise").standard_normal(images.shape)
        images = (0.5 + 0.25 * noise).clip(0, 1).astype(np.float32)
    return torch.tensor(images, device=context.device), torch.tensor(chosen.labels, dtype=torch.int64, device=context.device)


def shown(images: Tensor, labels: Tensor, params: SyntheticParams) -> tuple[Tensor, Tensor]:
    """What enters a network: the images with their labels, or with ``fyi`` their mirror images behind them."""
    if not params.fyi:
        return images, labels
    return torch.cat([images, mirrored(images)]), torch.cat([labels, labels])


@dataclass(frozen=True)
class Learnt:
    """What is learnt, by name, and how fast.

    Attributes:
        tensors: leaves that want a gradient; ``images`` are kept in [0, 1].
        optimiser: over them, in the same order.
        lr: the learning rate of a step, counted from 0.
        scales: factors on the gradients of some, which with an optimiser that is linear in them (sgd) are factors on their learning rate.
        ema: what is returned is an exponential moving average of each with this decay.
    """

    tensors: Mapping[str, Tensor]
    optimiser: torch.optim.Optimizer
    lr: Callable[[int], float]
    scales: Mapping[str, float]
    ema: float | None = None


def optimised(
    context: FitContext[Arrays], name: str, learnt: Learnt, loss: StepLoss, steps: int, settings: JsonObject
) -> dict[str, Tensor]:
    """Minimise ``loss`` for ``steps`` steps, and return what was learnt, by name.

    Args:
        name: of this optimisation among those of one condenser.
        settings: what decides its course, beside the data and the seed.

    Raises:
        TargetError: the loss is not finite any more.
    """
    course = [FORMAT, name, settings, context.seed, context.train.digest(), steps]
    identity = hashlib.sha256(json.dumps(course, sort_keys=True).encode()).hexdigest()
    training = _PixelTraining(name, learnt, loss, steps)
    run(context, training, Checkpoint(context.checkpoints / name, identity), CHECKPOINT_SECONDS)
    return {key: tensor.detach() for key, tensor in training.result.items()}


class _PixelTraining(Training):
    """A number of steps on images, with ``REPORTS`` reports."""

    def __init__(self, name: str, learnt: Learnt, loss: StepLoss, steps: int) -> None:
        self.name, self.learnt, self.loss = name, learnt, loss
        self.loss_name = f"{name.replace('/', '_')}_loss"
        self.optimiser = learnt.optimiser
        self.reports = sorted({-(-steps * part // REPORTS) for part in range(1, REPORTS + 1)})
        self.average = {key: tensor.detach().clone() for key, tensor in learnt.tensors.items()} if learnt.ema else {}

    @property
    def result(self) -> Mapping[str, Tensor]:
        return self.average or self.learnt.tensors

    def lr(self, step: int) -> float:
        return self.learnt.lr(step)

    def purpose(self, step: int) -> str:
        return f"condense/{self.name}/{step}"

    def position(self, step: int) -> str:
        return f"{self.name} broke down in step {step}"

    def backward(self, step: int, seed: int) -> tuple[dict[str, float], int]:
        loss, tensors = self.loss(step, torch.Generator().manual_seed(seed)), self.learnt.tensors
        gradients = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True, materialize_grads=True)
        for (key, tensor), gradient in zip(tensors.items(), gradients, strict=True):
            tensor.grad = gradient * self.learnt.scales.get(key, 1.0)
        return {self.loss_name: loss.item()}, 1

    def after_step(self, metrics: Mapping[str, float]) -> None:
        with torch.no_grad():
            if "images" in self.learnt.tensors:
                self.learnt.tensors["images"].clamp_(0, 1)
            if self.learnt.ema:
                for key, mean in self.average.items():
                    mean.lerp_(self.learnt.tensors[key], 1 - self.learnt.ema)

    def measure(self, means: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return dict(means)

    def tensors(self) -> dict[str, Tensor]:
        return grouped("learnt", self.learnt.tensors) | grouped("average", self.average)

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, kept in (("learnt", self.learnt.tensors), ("average", self.average)):
                for key, tensor in group(name, tensors).items():
                    kept[key].copy_(tensor)

    def state_dict(self) -> JsonObject:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        return None
