"""The losses that attacks maximize most, with their gradients with respect to the logits in closed form.

On a small network, a graph of the loss costs an attack as much as the network's own. Each function takes (B, K) logits and (B,)
classes, and returns (B,) values and (B, K) gradients; they are those of the function of the same name in ``losses``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from robustkd.contracts import AttackError
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

ValueAndGradient: TypeAlias = "Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]"


def cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy, with a gradient that stays exact where the network is sure.

    The usual gradient, softmax(z) - onehot(y), contains p_y - 1, of which float32 keeps no digit where p_y is 1 - 1e-7 and more:
    an attack then starts in a direction that is noise, or in none. Here it is -sum_{j != y} p_j, which is the same number.

    In double precision, because exponentials in float32 are rounded otherwise in one place of a batch than in another; in float32
    on a device that has no more, where a gradient may then differ by 1e-6 of itself with the sample's place.
    """
    own = labels.unsqueeze(1)
    log_p = logits.log_softmax(1, dtype=widest(logits))
    minus_rest, slope = _minus_rest_and_slope(log_p.exp(), own, logits.dtype)
    value = torch.where(minus_rest > -0.5, minus_rest.log1p(), log_p.gather(1, own))  # the one that has digits left
    return value.neg_().squeeze(1).to(logits.dtype), slope


def gradient_of_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The (B, K) gradients of ``cross_entropy`` alone."""
    return _minus_rest_and_slope(logits.softmax(1, dtype=widest(logits)), labels.unsqueeze(1), logits.dtype)[1]


def _minus_rest_and_slope(p: Tensor, own: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """From (B, K) probabilities, which are overwritten: (B, 1) -sum_{j != y} p_j, and the gradient of the cross entropy."""
    p.scatter_(1, own, 0.0)
    minus_rest = p.sum(1, keepdim=True).neg_()
    return minus_rest, p.scatter_(1, own, minus_rest).to(dtype)


def margin(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """max_{j != y} z_j - z_y; classes that are level share the slope."""
    own = labels.unsqueeze(1)
    others = logits.scatter(1, own, -torch.inf)
    top = others.amax(1, keepdim=True)
    level = (others == top).to(logits.dtype)
    slope = level.div_(level.sum(1, keepdim=True)).scatter_(1, own, -1.0)
    return (top - logits.gather(1, own)).squeeze(1), slope


def targeted_cross_entropy(logits: Tensor, goals: Tensor) -> tuple[Tensor, Tensor]:
    """The negative ``cross_entropy`` of the wanted classes, and its gradient."""
    value, slope = cross_entropy(logits, goals)
    return -value, -slope


def gradient_of_targeted_cross_entropy(logits: Tensor, goals: Tensor) -> Tensor:
    """-``gradient_of_cross_entropy``."""
    return -gradient_of_cross_entropy(logits, goals)


def targeted_margin(logits: Tensor, goals: Tensor) -> tuple[Tensor, Tensor]:
    """The negative ``margin`` of the wanted classes, and its gradient."""
    value, slope = margin(logits, goals)
    return -value, -slope


def dlr(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The margin over z_(1) - z_(3)."""
    require_classes(logits, 3, "DLR")
    return _over(margin(logits, labels), logits, 3, (1.0, 0.0, -1.0))


def targeted_dlr(logits: Tensor, goals: Tensor) -> tuple[Tensor, Tensor]:
    """-margin over z_(1) - (z_(3) + z_(4)) / 2."""
    require_classes(logits, 4, "targeted DLR")
    return _over(targeted_margin(logits, goals), logits, 4, (1.0, 0.0, -0.5, -0.5))


def scale_free(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """``dlr``, or with two classes the margin."""
    return (dlr if logits.shape[1] >= 3 else margin)(logits, labels)


def scale_free_towards(logits: Tensor, goals: Tensor) -> tuple[Tensor, Tensor]:
    """``targeted_dlr``, or with three classes and fewer the targeted margin."""
    return (targeted_dlr if logits.shape[1] >= 4 else targeted_margin)(logits, goals)


def _over(numerator: tuple[Tensor, Tensor], logits: Tensor, count: int, weights: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """A loss divided by a weighted sum of the ``count`` highest logits."""
    value, slope = numerator
    highest, classes = logits.topk(count, dim=1)
    weighted = logits.new_tensor(weights)
    spread = (highest * weighted).sum(1, keepdim=True) + 1e-12
    ratio = value.unsqueeze(1) / spread
    return ratio.squeeze(1), (slope / spread).scatter_add_(1, classes, -(ratio / spread) * weighted)


def widest(values: Tensor) -> torch.dtype:
    """float64 where the device of ``values`` has it (Apple's GPUs do not), else float32."""
    return _widest_on(values.device)


@functools.cache
def _widest_on(device: torch.device) -> torch.dtype:
    try:
        return torch.empty((), dtype=torch.float64, device=device).dtype
    except (TypeError, RuntimeError, NotImplementedError):
        return torch.float32


def require_classes(logits: Tensor, count: int, loss: str) -> None:
    """Refuse (B, K) logits of fewer than ``count`` classes.

    Raises:
        AttackError: K is below ``count``.
    """
    if logits.shape[1] < count:
        raise AttackError(
            f"the {loss} loss needs at least {count} classes, there are {logits.shape[1]}", fix="use loss: margin"
        )
