"""iCaRL's loss: one binary cross entropy for each class so far, where the network before the task speaks for the old ones.

    L = (1 - l) mean_{c new} BCE(z_c, [y = c])  +  alpha * l * mean_{c old} BCE(z_c, sigmoid(z^old_c)),      l = |old| / (|old| + |new|)

A remembered image has no new class, so its label enters through the old network alone. With alpha = 1 it is the mean over all classes.

Source: Rebuffi et al.: iCaRL (CVPR 2017), arXiv:1611.07725, algorithm 3; alpha: FLAIR's public code (HongsinLee/FLAIR).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustkd.lazy import F

if TYPE_CHECKING:
    from torch import Tensor


def binary_loss(
    logits: Tensor, labels: Tensor, before: Tensor | None, old: Sequence[int], new: Sequence[int], alpha: float = 1.0
) -> Tensor:
    """The loss of (B, K) logits and (B,) labels, with (B, K) logits of the network before the task, or None in the first one."""
    fresh = logits[:, list(new)]
    wanted = F.one_hot(labels, logits.shape[1])[:, list(new)].to(fresh.dtype)
    hard = F.binary_cross_entropy_with_logits(fresh, wanted)
    if before is None:
        return hard
    share = len(old) / (len(old) + len(new))
    soft = F.binary_cross_entropy_with_logits(logits[:, list(old)], before[:, list(old)].detach().sigmoid())
    return (1 - share) * hard + alpha * share * soft
