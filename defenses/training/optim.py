"""The optimiser: how its learning rate falls, and its state as tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from robustkd.defenses.training.params import TrainParams
from robustkd.targets.training import adam, adamw, sgd

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_DEFAULT_LR = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}


def base_lr(settings: TrainParams) -> float:
    """The learning rate of the first epoch."""
    return settings.lr if settings.lr is not None else _DEFAULT_LR[settings.optimiser]


def milestones(settings: TrainParams) -> tuple[int, ...]:
    """After how many epochs the rate drops: those given, else the paper's fractions of ``epochs``."""
    if settings.milestones is not None:
        return settings.milestones
    return tuple(round(fraction * settings.epochs) for fraction in settings.milestone_fractions)


def decay(settings: TrainParams, epoch: int) -> float:
    """The factor on the learning rate in ``epoch`` (counted from 0); 1 in the first.

    ``steps`` counts the milestones passed rather than dividing again and again, so that a resumed training and a second
    milestone cannot go wrong.
    """
    if settings.infinite is not None:
        return settings.infinite.rate(epoch / settings.epochs)
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * epoch / settings.epochs))
    return settings.gamma ** sum(epoch >= milestone for milestone in milestones(settings))


def optimiser(settings: TrainParams, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The update rule over the parameters that want a gradient."""
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    lr, weight_decay = base_lr(settings), settings.weight_decay
    if settings.optimiser == "sgd":
        return sgd(wanted, lr, settings.momentum, weight_decay)
    rule = adam if settings.optimiser == "adam" else adamw
    return rule(wanted, lr, weight_decay)


def optimiser_tensors(rule: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as one flat dictionary: ``<number of the parameter>/<name>`` -> tensor.

    What is not there yet, such as the momentum before the first step, is left out.
    """
    state = rule.state_dict()["state"].items()
    return {f"{number}/{name}": value for number, values in state for name, value in values.items() if value is not None}


def load_optimiser_tensors(rule: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what ``optimiser_tensors`` gave, wherever it is now; the optimiser takes the tensors for its own."""
    state: dict[int, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        number, _, name = path.partition("/")
        # torch brings all state to the parameter's device but Adam's step count, which it wants on the host.
        state.setdefault(int(number), {})[name] = tensor.cpu() if name == "step" else tensor
    rule.load_state_dict(rule.state_dict() | {"state": state})
