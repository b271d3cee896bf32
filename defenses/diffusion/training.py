"""Steps of Adam on some parameters of a diffusion model: the loop of every defense here.

As in the training of networks on images, what a step draws is a function of (seed, step), and a training that is killed and run
again ends with the same bits on a CPU. It is counted in steps, never in seconds.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from robustkd.contracts import FitContext, Params, TargetError
from robustkd.defenses.training.checkpoint import Checkpoint, Snapshot
from robustkd.defenses.training.loop import CHECKPOINT_SECONDS
from robustkd.defenses.training.seeding import derived_seed

Schedule = Literal["constant", "cosine"]
StepLoss = Callable[[torch.Generator], Tensor]
"""The scalar to minimise; everything random comes from the generator, which is the CPU's."""

_LOGGED = 20  # mean losses that a training reports


class StepParams(Params):
    """How long and how fast a diffusion model is tuned. A defense overrides the defaults that its paper gives."""

    steps: int = Field(1000, ge=1, description="of Adam")
    batch_size: int = Field(1, ge=1, description="prompts in each step")
    lr: float = Field(1e-5, gt=0, description="learning rate")
    schedule: Schedule = Field("constant", description="how the learning rate falls over the steps")


def train_steps(
    context: FitContext,
    name: str,
    parameters: Mapping[str, nn.Parameter],
    loss: StepLoss,
    settings: StepParams,
    *,
    masks: Mapping[str, Tensor] | None = None,
) -> None:
    """Minimise ``loss`` over ``parameters``, in place. ``context.log`` is told twenty means of it.

    Args:
        name: of this training among those of one defense.
        masks: of each parameter, 1 where it may move and 0 where not.

    Raises:
        TargetError: the loss is not finite any more.
    """
    course = json.dumps([name, settings.model_dump(mode="json"), context.seed, context.train.digest(), sorted(parameters)])
    checkpoint = Checkpoint(context.checkpoints / name, hashlib.sha256(course.encode()).hexdigest())
    optimiser = torch.optim.Adam(parameters.values(), lr=settings.lr)
    step, saved_at, sums = 0, time.monotonic(), [0.0, 0]
    if (snapshot := checkpoint.read()) is not None:
        step, sums = snapshot.facts["step"], snapshot.facts["sums"]
        _restore(snapshot, parameters, optimiser)
    while step < settings.steps:
        generator = torch.Generator().manual_seed(derived_seed(context.seed, f"{name}/{step}"))
        value = loss(generator)
        if not math.isfinite(value.item()):
            raise TargetError(
                f"{name} broke down in step {step}: the loss is {value.item()}", fix=f"lower lr ({settings.lr:g})"
            )
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * _factor(settings, step)
        # Not backward(): that would also fill the gradients of what is not tuned.
        gradients = torch.autograd.grad(value, list(parameters.values()))
        for (key, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            parameter.grad = gradient if masks is None else gradient * masks[key]
        optimiser.step()
        step, sums = step + 1, [sums[0] + value.item(), sums[1] + 1]
        if step * _LOGGED // settings.steps > (step - 1) * _LOGGED // settings.steps:
            context.log(step, {f"{name}_loss": sums[0] / sums[1]})
            sums = [0.0, 0]
        if time.monotonic() - saved_at >= CHECKPOINT_SECONDS or step == settings.steps:
            checkpoint.write(_snapshot(parameters, optimiser, {"step": step, "sums": sums}))
            saved_at = time.monotonic()
    for parameter in parameters.values():
        parameter.grad = None


def _factor(settings: StepParams, step: int) -> float:
    return 1.0 if settings.schedule == "constant" else 0.5 * (1 + math.cos(math.pi * step / settings.steps))


def _snapshot(
    parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, facts: Mapping[str, object]
) -> Snapshot:
    tensors: dict[str, Tensor] = {f"weights/{name}": parameter for name, parameter in parameters.items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{number}/{name}": value for name, value in state.items()}
    return Snapshot(tensors, facts)


def _restore(snapshot: Snapshot, parameters: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for path, tensor in snapshot.tensors.items():
        if path.startswith("weights/"):
            parameters[path.removeprefix("weights/")].data.copy_(tensor)
        else:
            _, number, name = path.split("/")
            state.setdefault(int(number), {})[name] = tensor
    optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
