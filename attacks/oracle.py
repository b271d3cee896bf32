"""The target as an attack sees it: frozen (``frozen``), and with every pass counted (``Oracle``)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from robustkd.contracts import Batch, Target, TargetError
from robustkd.contracts.target import Precision
from robustkd.targets import frozen

__all__ = ["Objective", "Oracle", "finite", "frozen"]

Objective = Callable[[Tensor, Tensor], Tensor]
"""(B, K) logits and the (B,) rows they belong to -> (B,) values to climb."""


class Oracle:
    """Queries of one target about the samples of one batch.

    Rows name samples by their place in the batch, so that counts and criteria stay right however few samples are
    still being attacked.

    Args:
        target: to be used inside ``frozen(target.module)``.
        batch: the samples; with ``goals``, an adversarial sample is one that reaches its goal.
        precision: of the passes that ``climb`` makes. With less than the target's own, a point that is adversarial is looked at
            once more in that: rounding is no success.
    """

    def __init__(self, target: Target, batch: Batch, precision: Precision = "full") -> None:
        self.target = target
        self.precision = precision
        self.labels = batch.labels
        self.goals = batch.goals
        self._forwards = torch.zeros(len(batch), dtype=torch.int64, device=batch.inputs.device)
        self._backwards = self._forwards.clone()
        # Most passes are about the rows of the pass before: they are written down once these change.
        self._rows, self._pending = self._forwards[:0], (0, 0)

    @property
    def forwards(self) -> Tensor:
        """(B,) forward passes of each sample; to be added to in place."""
        self._write_down()
        return self._forwards

    @property
    def backwards(self) -> Tensor:
        """(B,) backward passes likewise."""
        self._write_down()
        return self._backwards

    def _count(self, rows: Tensor, forwards: int, backwards: int) -> None:
        if rows is not self._rows:
            self._write_down()
            self._rows = rows
        self._pending = (self._pending[0] + forwards, self._pending[1] + backwards)

    def _write_down(self) -> None:
        forwards, backwards = self._pending
        self._pending = (0, 0)
        if forwards:
            self._forwards[self._rows] += forwards
        if backwards:
            self._backwards[self._rows] += backwards

    def logits(self, x: Tensor, rows: Tensor) -> Tensor:
        """(B, K) outputs without a graph."""
        with torch.no_grad():
            logits = self.target(x)
        self._count(rows, 1, 0)
        return finite(logits)

    def climb(self, x: Tensor, rows: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, values of ``objective`` and its gradient at ``x``: one forward and one backward pass, inputs only.

        Raises:
            TargetError: the output is NaN, or does not depend differentiably on the input.
        """
        x = x.detach().requires_grad_()
        reduced = self.precision == "bf16"
        with torch.enable_grad():
            # Full is what the caller computes in: training has an autocast of its own.
            with torch.autocast(x.device.type, torch.bfloat16) if reduced else nullcontext():
                logits = self.target(x)
            values = objective(finite(logits), rows)
            total = values.sum()
        if not values.requires_grad:
            raise TargetError(
                "the model's output has no gradient with respect to its input",
                fix="use a black-box attack, or give the non-differentiable stage a backward pass (BPDA)",
            )
        (gradient,) = torch.autograd.grad(total, x, allow_unused=True)
        self._count(rows, 1, 1)
        if gradient is None:
            gradient = torch.zeros_like(x)
        logits = logits.detach()
        if reduced and bool((seen := self.is_adversarial(logits, rows)).any()):
            logits[seen] = self.logits(x[seen].detach(), rows[seen])
        return logits, values.detach(), gradient

    def is_adversarial(self, logits: Tensor, rows: Tensor) -> Tensor:
        """(B,) bool: the goal class is predicted, or, without goals, another class than the label. Never so on an ``endless``
        target, such as a surrogate: there an attack is to go on.
        """
        if getattr(self.target, "endless", False):
            return torch.zeros_like(rows, dtype=torch.bool)
        predicted = logits.argmax(1)
        return predicted != self.labels[rows] if self.goals is None else predicted == self.goals[rows]


def finite(logits: Tensor) -> Tensor:
    """The logits themselves.

    Raises:
        TargetError: some are NaN or infinite.
    """
    valid = torch.isfinite(logits.detach())
    if not valid.all():
        raise TargetError(
            f"the model returned NaN or infinite logits for {int((~valid.all(1)).sum())} of {len(logits)} samples",
            fix="a NaN is not a success: repair the model (overflow in half precision, log of 0, division by 0)",
        )
    return logits
