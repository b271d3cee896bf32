"""The steps that every training is made of, and the optimisers that take them.

The loop of the defenses (``defenses.training.loop``) adds reports, checkpoints and a seed for each step. A student of a target's answers,
which a check or an attack trains within seconds, needs none of them: ``fit``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from robustkd.lazy import large_import, torch

if TYPE_CHECKING:
    from torch import Tensor, nn

Measured = TypeVar("Measured")


def sgd(
    parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.0, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """Make an optimiser: stochastic gradient descent with momentum."""
    with large_import():  # the first optimiser of a process imports torch's compiler, and takes a second for it
        return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)


def adam(
    parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.Optimizer:
    """Make an optimiser: Adam (Kingma and Ba 2015)."""
    with large_import():  # as above
        return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, betas=betas)


def adamw(
    parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999)
) -> torch.optim.Optimizer:
    """Make an optimiser: Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""
    with large_import():  # as above
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, betas=betas)


def set_lr(optimiser: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimiser.param_groups:
        group["lr"] = lr


def training_step(optimiser: torch.optim.Optimizer, lr: float, backward: Callable[[], Measured]) -> Measured:
    """One update of the weights.

    Args:
        optimiser: over the weights.
        lr: the learning rate of this step.
        backward: puts the gradient of the loss into the weights. An error that it raises leaves them as they are.

    Returns:
        What ``backward`` returns.
    """
    set_lr(optimiser, lr)
    measured = backward()
    optimiser.step()
    return measured


def bfloat16(device: torch.device, *, enabled: bool) -> torch.autocast:
    """A context in which networks compute in bfloat16, and passes without gradients leave those of later passes alone.

    Args:
        device: on which they compute.
        enabled: False changes nothing.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=_autocast_keeps_gradients())


@cache
def _autocast_keeps_gradients() -> bool:
    """Whether weights get gradients after a pass without: torch 2.8 takes the copies in bfloat16 that were made for that one."""
    weight, x = torch.zeros(1, 1, requires_grad=True), torch.zeros(1, 1)  # no layer, whose first weights would be drawn
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            x @ weight
        return (x @ weight).requires_grad


def fit(optimiser: torch.optim.Optimizer, losses: Iterable[Tensor], lr: Callable[[int], float]) -> None:
    """Take a step on each loss.

    Args:
        optimiser: over the weights.
        losses: scalars, each computed when it is asked for, with the weights of then.
        lr: the learning rate of a step, counted from 0.
    """
    for step, loss in enumerate(losses):
        optimiser.zero_grad()
        training_step(optimiser, lr(step), loss.backward)
