"""The optimiser and how its learning rate falls."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from robustkd.defenses.training.params import TrainParams
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import nn

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
        return torch.optim.SGD(wanted, lr=lr, momentum=settings.momentum, weight_decay=weight_decay)
    rule = torch.optim.Adam if settings.optimiser == "adam" else torch.optim.AdamW
    return rule(wanted, lr=lr, weight_decay=weight_decay)
