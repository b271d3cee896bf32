"""A target that is asked about few samples at once, however many somebody wants to know about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from robustkd.contracts import Target, WrappedTarget
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class SplitTarget(WrappedTarget):
    """A target whose network is never called with more than ``batch_size`` samples; the answers are joined.

    Where a gradient is wanted through more samples than that, each part's intermediate results are computed again on the way
    back, so that no more than one part's are in memory.
    """

    def __init__(self, target: Target, batch_size: int) -> None:
        super().__init__(target)
        self.batch_size = batch_size
        self.members = [SplitTarget(member, batch_size) for member in target.members]

    @override
    def __call__(self, inputs: Tensor) -> Tensor:
        if len(inputs) <= self.batch_size:
            return self.target(inputs)
        from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop  # late: it imports torch

        again = torch.is_grad_enabled() and inputs.requires_grad
        parts = inputs.split(self.batch_size)
        # Without an early stop, which is an exception out of the network and would be told as the model's own.
        with set_checkpoint_early_stop(False):
            return torch.cat([checkpoint(self.target, x, use_reentrant=False) if again else self.target(x) for x in parts])
