"""A target of inputs in a unit of their own, asked in [0, 1]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.contracts import Target
from robustkd.contracts.target import WrappedTarget
from robustkd.lazy import torch
from robustkd.normalisation.unit import Unit
from robustkd.targets.activations import layer_outputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class UnitTarget(WrappedTarget):
    """A target that is asked in [0, 1] about inputs that it takes in another unit."""

    def __init__(self, target: Target, unit: Unit) -> None:
        super().__init__(target)
        self.unit = unit
        self.bounds = unit.box(torch.zeros((), device=target.device))
        self.members = [UnitTarget(member, unit) for member in target.members]

    def __call__(self, inputs: Tensor) -> Tensor:
        """(B, *shape) in [0, 1] -> (B, K)."""
        return self.target(inputs * self.unit.scale + self.unit.low.to(inputs))

    def features(self, inputs: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """The outputs of the inner network's ``layers`` for inputs in [0, 1], by name; as of ``ImageTarget.features``."""
        return layer_outputs(self, inputs, layers)
