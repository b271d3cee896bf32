"""A learning rate at which a training can go on with any data: it is lowered for what is deployed alone.

eta(s) = constant + (1 - constant) (1 + cos(pi s / cooldown)) / 2          s < cooldown, the share of the training that is done
         constant                                                          until anneal is left
         constant (lowest / constant)^((s - 1 + anneal) / anneal)          then
"""

from __future__ import annotations

import math

from pydantic import Field, model_validator

from robustkd.contracts import Params


class InfiniteParams(Params):
    """An infinite schedule: behind the rise the rate falls to a constant one, at which a training can go on with any data, and only
    the last steps anneal it for what is deployed. ``anneal: 0`` leaves a model that the next training goes on with.

    Source: the infinite learning-rate schedules of continual pre-training, such as Singh et al.: Beyond cosine decay (2025), as others
    describe them; the shares are ours.
    """

    constant: float = Field(0.3, gt=0, le=1, description="eta_const, the rate that it stays at, to lr")
    lowest: float = Field(0.01, gt=0, le=1, description="eta_min, the rate that it ends at, to lr")
    cooldown: float = Field(
        0.3, ge=0, lt=1, description="share of the steps behind the rise in which it falls, along half a cosine"
    )
    anneal: float = Field(
        0.2, ge=0, lt=1, description="share of them, the last ones, in which it falls exponentially to the lowest"
    )

    @model_validator(mode="after")
    def _in_this_order(self) -> InfiniteParams:
        if self.cooldown + self.anneal > 1:
            raise ValueError(f"cooldown {self.cooldown:g} and anneal {self.anneal:g} are more than all steps")
        if self.lowest > self.constant:
            raise ValueError(f"the lowest rate {self.lowest:g} is above the constant one, {self.constant:g}")
        return self

    def rate(self, done: float) -> float:
        """The factor on ``lr`` when this share of the steps behind the rise is done."""
        if done < self.cooldown:
            return self.constant + (1 - self.constant) * 0.5 * (1 + math.cos(math.pi * done / self.cooldown))
        left = 1 - self.anneal
        if done <= left:
            return self.constant
        return self.constant * (self.lowest / self.constant) ** ((done - left) / self.anneal)

    def going_on(self, first: bool) -> InfiniteParams:
        """The part that ends at the constant rate: of the first training with the fall to it, of the next ones without."""
        return self.model_copy(update={"anneal": 0.0} if first else {"anneal": 0.0, "cooldown": 0.0})

    def annealing(self) -> InfiniteParams:
        """The part from the constant rate to the lowest, as a training of its own."""
        return self.model_copy(update={"cooldown": 0.0, "anneal": 1.0})
