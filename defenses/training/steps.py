"""Trainings of a number of steps of AdamW on any parameters: those of models that generate text or images.

What a step draws is a function of (seed, step). A training is counted in steps, never in seconds.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeAlias

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import FitContext, Params, Samples
from robustkd.contracts.json_value import JsonObject
from robustkd.contracts.params import AddedLater
from robustkd.defenses.training.checkpoint import Checkpoint, grouped
from robustkd.defenses.training.infinite import InfiniteParams
from robustkd.defenses.training.loop import CHECKPOINT_SECONDS, FORMAT, Training, run
from robustkd.defenses.training.params import BatchSizeParam
from robustkd.lazy import torch
from robustkd.targets.training import adamw

if TYPE_CHECKING:
    from torch import Tensor, nn

Schedule = Literal["constant", "cosine"]
StepLoss: TypeAlias = "Callable[[torch.Generator], Tensor]"
"""The scalar to minimise; everything random comes from the generator, which is the CPU's, or from torch's own, which is seeded."""

REPORTS = 20
"""How often a training reports: so many times, evenly."""
MEASURE_STEPS = 10
"""What is measured beside the loss may cost as much as a few steps: so many lie between."""


class StepParams(Params):
    """How long and how fast a model that answers is tuned. A defense overrides the defaults that its paper gives."""

    steps: int = Field(1000, ge=1, description="updates of the weights")
    batch_size: BatchSizeParam = 32
    lr: float = Field(1e-4, gt=0, description="learning rate")
    schedule: Schedule = Field("cosine", description="how the learning rate falls over the steps")
    infinite: Annotated[InfiniteParams | None, AddedLater()] = Field(
        None, description="in place of `schedule`: one that any number of trainings can go on from"
    )
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps in which it rises first")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW, decoupled")
    clip: float | None = Field(None, gt=0, description="the longest gradient; longer ones are shortened to it")

    def rate(self, step: int) -> float:
        """The factor on ``lr`` in a step, counted from 0."""
        rising = round(self.warmup * self.steps)
        if step < rising:
            return (step + 1) / (rising + 1)
        if self.infinite is not None:
            return self.infinite.rate((step - rising) / (self.steps - rising))
        return 1.0 if self.schedule == "constant" else 0.5 * (1 + math.cos(math.pi * (step - rising) / (self.steps - rising)))


class Memory(Protocol):
    """What a loss learns on the way, which a resumed training must take up again."""

    def state_dict(self) -> JsonObject:
        """The state as plain JSON."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that ``state_dict`` gave."""


class StepCounter:
    """How many steps were taken: the ``Memory`` of a loss that changes as its training goes on."""

    def __init__(self) -> None:
        self.taken = 0

    def next(self) -> int:
        """The number of this step, from 0."""
        self.taken += 1
        return self.taken - 1

    def state_dict(self) -> JsonObject:
        """See ``Memory``."""
        return {"taken": self.taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See ``Memory``."""
        self.taken = int(state["taken"])


def train_steps(
    context: FitContext[Samples],
    name: str,
    parameters: Mapping[str, nn.Parameter],
    loss: StepLoss,
    settings: StepParams,
    *,
    measure: Callable[[], dict[str, float]] = dict,
    memory: Memory | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> None:
    """Minimise ``loss`` over ``parameters``, in place.

    ``context.log`` is told ``REPORTS`` times: the mean ``<name>_loss``, ``lr``, ``seconds`` and, as far as ``MEASURE_STEPS`` lie
    between, what ``measure`` gives. A resumed training tells it again.

    Args:
        context: data, seed, device, checkpoints and log.
        name: of this training among those of one defense.
        parameters: the same values when it is called again after a kill.
        loss: see ``StepLoss``.
        settings: all of them enter the checkpoint's identity.
        measure: what else to report.
        memory: state of the loss's own.
        checkpoint_seconds: time between checkpoints.

    Raises:
        TargetError: the loss is not finite any more.
    """
    run_steps(context, StepTraining(name, parameters, loss, settings, measure, memory), checkpoint_seconds)


def run_steps(context: FitContext[Samples], training: StepTraining, checkpoint_seconds: float = CHECKPOINT_SECONDS) -> None:
    """Run a training of steps to its end, from its checkpoint where there is one."""
    identity = _identity(context, training.name, training.parameters, training.settings)
    run(context, training, Checkpoint(context.checkpoints / training.name, identity), checkpoint_seconds)
    for parameter in training.parameters.values():
        parameter.grad = None


class StepTraining(Training):
    """A number of steps, with ``REPORTS`` reports."""

    def __init__(
        self,
        name: str,
        parameters: Mapping[str, nn.Parameter],
        loss: StepLoss,
        settings: StepParams,
        measure: Callable[[], dict[str, float]],
        memory: Memory | None,
    ) -> None:
        self.name, self.parameters, self.loss, self.settings, self.memory = name, parameters, loss, settings, memory
        self.loss_name = f"{name}_loss"
        self.optimiser = adamw(parameters.values(), settings.lr, settings.weight_decay)
        self.reports = sorted({-(-settings.steps * part // REPORTS) for part in range(1, REPORTS + 1)})
        self._measure, self._measured = measure, _apart(self.reports, MEASURE_STEPS)

    @override
    def lr(self, step: int) -> float:
        return self.settings.lr * self.settings.rate(step)

    @override
    def purpose(self, step: int) -> str:
        return f"{self.name}/{step}"

    @override
    def position(self, step: int) -> str:
        return f"{self.name} broke down in step {step}"

    @override
    def backward(self, step: int, seed: int) -> tuple[dict[str, float], int]:
        loss = self.loss(torch.Generator().manual_seed(seed))
        put_gradients(loss, list(self.parameters.values()), self.settings.clip)
        return {self.loss_name: loss.item()}, 1

    @override
    def measure(self, means: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> dict[str, float]:
        more = self._measure() if self.reports[len(history)] in self._measured else {}
        return {**means, **more}

    @override
    def tensors(self) -> dict[str, Tensor]:
        return grouped("weights", self.parameters)

    @override
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for name, weight in self.parameters.items():
            weight.data.copy_(tensors[f"weights/{name}"])

    @override
    def state_dict(self) -> JsonObject:
        return {"memory": self.memory.state_dict() if self.memory else {}}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.memory is not None:
            self.memory.load_state_dict(dict(state["memory"]))


def put_gradients(loss: Tensor, weights: Sequence[nn.Parameter], clip: float | None) -> None:
    """The gradient of ``loss`` goes into ``weights`` and into nothing else, shortened to the length ``clip``."""
    # Not backward(): that would also fill the gradients of what is not tuned. Some weights may have no part in a loss, such as those
    # behind the layer that it looks at.
    gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(weights, clip)


def _apart(steps: Sequence[int], distance: int) -> set[int]:
    """The first, the last, and of those between as many as keep the ``distance``."""
    kept = [steps[0]]
    for step in steps:
        if step - kept[-1] >= distance:
            kept.append(step)
    return {*kept, steps[-1]}


def _identity(context: FitContext[Samples], name: str, parameters: Iterable[str], settings: StepParams) -> str:
    """A hash of what decides a training's course; a checkpoint of another course is not taken up."""
    course = [FORMAT, name, settings.model_dump(mode="json"), context.seed, context.train.digest(), sorted(parameters)]
    return hashlib.sha256(json.dumps(course).encode()).hexdigest()
