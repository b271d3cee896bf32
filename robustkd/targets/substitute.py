"""Another network in the place of a target: what transfer attacks climb."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from robustkd.contracts import Target
from robustkd.contracts.target import WrappedTarget

if TYPE_CHECKING:
    from torch import Tensor, nn


class SubstituteTarget(WrappedTarget):
    """The bounds and classes of a target, and the answers of another network.

    Args:
        target: what is attacked in the end.
        network: answers (B, *shape) with (B, K) logits.
        never_adversarial: see ``Target``.
    """

    def __init__(self, target: Target, network: nn.Module, *, never_adversarial: bool = False) -> None:
        super().__init__(target)
        self.module = network
        self.never_adversarial = never_adversarial

    @override
    def __call__(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.module(inputs.float())
        return logits
