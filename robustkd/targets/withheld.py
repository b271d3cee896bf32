"""The picture that stands for one that was held back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Withheld(Tensor):
    """A black picture in the place of one that a guard held back: a refusal, whatever a judge sees in it.

    What is computed from it is an ordinary tensor.

    Attributes:
        reason: what held it back.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    reason: str

    @classmethod
    def of(cls, shape: Sequence[int], reason: str) -> Withheld:
        """A picture (C, H, W) of zeros."""
        made = torch.zeros(tuple(shape)).as_subclass(cls)
        made.reason = reason
        return made
