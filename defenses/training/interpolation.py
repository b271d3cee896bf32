"""TAID's moving target: the teacher's share of an interpolation with the student's own answer.

    m <- beta * m + (1 - beta) * (J' - J) / J'
    t <- min( t_end, max( t_start + (t_end - t_start) * n / N,  t + alpha * sigmoid(m) * (1 - t) ) )

after step n of N, whose loss is J, with J' the loss of the step before.

Source: Shing et al.: TAID: temporally adaptive interpolated distillation (ICLR 2025), algorithm 1.
"""

from __future__ import annotations

import math

from pydantic import Field

from robustkd.contracts import Params


class InterpolationParams(Params):
    """How the teacher's share rises; the defaults are the authors'."""

    t_start: float = Field(0.4, ge=0, lt=1, description="the teacher's share at the start")
    t_end: float = Field(1.0, gt=0, le=1, description="its share at the end")
    step: float = Field(5e-4, ge=0, le=1, description="alpha, how far it may hurry ahead in a step")
    momentum: float = Field(0.99, ge=0, lt=1, description="beta, of the mean relative change of the loss")


class MovingShare:
    """The teacher's share t, which moves with the steps and hurries ahead where the loss falls. For classes that derive from it.

    Attributes:
        t: the teacher's share.
        trend: m.
        previous: J', None before the first step.
        done: n.
    """

    def begin(self, params: InterpolationParams, steps: int) -> None:
        """Before the first of ``steps`` steps."""
        self._interpolation, self._steps = params, steps
        self.t, self.trend, self.done = params.t_start, 0.0, 0
        self.previous: float | None = None

    def advance(self, loss: float) -> None:
        """After a step with this loss."""
        p = self._interpolation
        self.done += 1
        if self.previous is not None:
            change = (self.previous - loss) / max(self.previous, 1e-15)
            self.trend = p.momentum * self.trend + (1 - p.momentum) * change
            line = p.t_start + (p.t_end - p.t_start) * self.done / self._steps
            self.t = min(p.t_end, max(line, self.t + p.step * (1 - self.t) / (1 + math.exp(-self.trend))))
        self.previous = loss
