"""Steps of AdamW on some parameters of a model that answers: its training loop.

The counterpart of ``loop``, which passes over labelled images epoch by epoch, and with the same promises: what a step draws is a
function of (seed, step), so a training that is killed at any instant and run again ends, on a CPU, with the same bits; a loss that
is not finite stops it before it reaches the weights. It is counted in steps, never in seconds.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from pydantic import Field

from robustkd.contracts import FitContext, Params, Samples, TargetError
from robustkd.defenses.training.checkpoint import Checkpoint, Snapshot
from robustkd.defenses.training.loop import CHECKPOINT_SECONDS
from robustkd.defenses.training.seeding import derived_seed, preserved_rng
from robustkd.lazy import torch

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
    batch_size: int = Field(32, ge=1, description="samples in each step")
    lr: float = Field(1e-4, gt=0, description="learning rate")
    schedule: Schedule = Field("cosine", description="how the learning rate falls over the steps")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps in which it rises first")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW, decoupled")
    clip: float | None = Field(None, gt=0, description="the longest gradient; longer ones are shortened to it")

    def rate(self, step: int) -> float:
        """The factor on ``lr`` in a step, counted from 0."""
        rising = round(self.warmup * self.steps)
        if step < rising:
            return (step + 1) / (rising + 1)
        return 1.0 if self.schedule == "constant" else 0.5 * (1 + math.cos(math.pi * (step - rising) / (self.steps - rising)))


class Memory(Protocol):
    """What a loss learns on the way, which a resumed training must take up again."""

    def state_dict(self) -> dict[str, Any]:
        """It as plain JSON."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what ``state_dict`` gave."""


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
    checkpoint = Checkpoint(context.checkpoints / name, _identity(context, name, parameters, settings))
    optimiser = torch.optim.AdamW(parameters.values(), lr=settings.lr, weight_decay=settings.weight_decay)
    now = _Progress()
    if (saved := checkpoint.read()) is not None:
        now = _restored(saved, parameters, optimiser, memory)
    for number, told in enumerate(now.history):
        context.log(number, told)
    reports = sorted({-(-settings.steps * part // REPORTS) for part in range(1, REPORTS + 1)})
    measured = _apart(reports, MEASURE_STEPS)
    started = kept = time.monotonic()
    with preserved_rng(context.device):
        while now.step < settings.steps:
            for group in optimiser.param_groups:
                group["lr"] = settings.lr * settings.rate(now.step)
            now.total += _step(context, name, parameters, loss, settings, optimiser, now.step)
            now.step, now.count = now.step + 1, now.count + 1
            if now.step in reports:
                more = measure() if now.step in measured else {}
                told = {f"{name}_loss": now.total / now.count, **more, "lr": optimiser.param_groups[0]["lr"]}
                now.history.append(told | {"seconds": time.monotonic() - started})
                now.total, now.count, started = 0.0, 0, time.monotonic()
                context.log(len(now.history) - 1, now.history[-1])
            if time.monotonic() - kept >= checkpoint_seconds or now.step == settings.steps:
                checkpoint.write(_snapshot(now, parameters, optimiser, memory))
                kept = time.monotonic()
    for parameter in parameters.values():
        parameter.grad = None


def _apart(steps: Sequence[int], distance: int) -> set[int]:
    """The first, the last, and of those between as many as keep the ``distance``."""
    kept = [steps[0]]
    for step in steps:
        if step - kept[-1] >= distance:
            kept.append(step)
    return {*kept, steps[-1]}


@dataclass
class _Progress:
    """Where a training is: ``total`` and ``count`` are about the steps since the last report."""

    step: int = 0
    total: float = 0.0
    count: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def _step(
    context: FitContext[Samples],
    name: str,
    parameters: Mapping[str, nn.Parameter],
    loss: StepLoss,
    settings: StepParams,
    optimiser: torch.optim.Optimizer,
    step: int,
) -> float:
    """One update; what the loss was."""
    seed = derived_seed(context.seed, f"{name}/{step}")
    torch.manual_seed(seed)
    value = loss(torch.Generator().manual_seed(seed))
    found = value.item()
    if not math.isfinite(found):
        raise TargetError(f"{name} broke down in step {step}: the loss is {found}", fix=f"lower lr ({settings.lr:g})")
    # Not backward(): that would also fill the gradients of what is not tuned.
    for parameter, gradient in zip(parameters.values(), torch.autograd.grad(value, list(parameters.values())), strict=True):
        parameter.grad = gradient
    if settings.clip is not None:
        torch.nn.utils.clip_grad_norm_(parameters.values(), settings.clip)
    optimiser.step()
    return found


def _identity(context: FitContext[Samples], name: str, parameters: Iterable[str], settings: StepParams) -> str:
    """A hash of what decides a training's course; a checkpoint of another course is not taken up."""
    course = [name, settings.model_dump(mode="json"), context.seed, context.train.digest(), sorted(parameters)]
    return hashlib.sha256(json.dumps(course).encode()).hexdigest()


def _snapshot(
    now: _Progress, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, memory: Memory | None
) -> Snapshot:
    tensors: dict[str, Tensor] = {f"weights/{name}": parameter for name, parameter in parameters.items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{number}/{name}": value for name, value in state.items()}
    return Snapshot(tensors, {"progress": asdict(now), "memory": memory.state_dict() if memory else {}})


def _restored(
    snapshot: Snapshot, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, memory: Memory | None
) -> _Progress:
    state: dict[int, dict[str, Tensor]] = {}
    for path, tensor in snapshot.tensors.items():
        if path.startswith("weights/"):
            parameters[path.removeprefix("weights/")].data.copy_(tensor)
        else:
            _, number, name = path.split("/")
            state.setdefault(int(number), {})[name] = tensor
    optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
    if memory is not None:
        memory.load_state_dict(dict(snapshot.facts["memory"]))
    return _Progress(**snapshot.facts["progress"])
