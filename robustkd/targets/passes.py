"""How many passes through a network were made: one mechanism for attacks, checks, adapters and benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.contracts import Target, WrappedTarget
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class PassCounter:
    """Counts the forward and backward passes of each of N samples.

    Most passes are about the same tensor of rows as the pass before. Their counts are added up as two numbers, and scattered to
    the samples only when another tensor comes: two kernels a pass less.

    Args:
        samples: N; 1 where only the total is of interest.
        device: of the counts.
        fractions: whether a pass may be shared by several samples; the counts are float64 then, otherwise int64.
    """

    def __init__(self, samples: int = 1, device: torch.device | str = "cpu", *, fractions: bool = False) -> None:
        self._forwards = torch.zeros(samples, dtype=torch.float64 if fractions else torch.int64, device=device)
        self._backwards = self._forwards.clone()
        self._all = self._rows = torch.arange(samples, device=device)
        self._pending: tuple[float, float] = (0, 0)

    @property
    def forwards(self) -> Tensor:
        """(N,) forward passes of each sample; to be added to in place."""
        self._flush()
        return self._forwards

    @property
    def backwards(self) -> Tensor:
        """(N,) backward passes of each sample; to be added to in place."""
        self._flush()
        return self._backwards

    @property
    def total(self) -> tuple[int, int]:
        """The forward and the backward passes of all samples."""
        return int(self.forwards.sum()), int(self.backwards.sum())

    def spend(self, rows: Tensor, forwards: float = 0, backwards: float = 0) -> None:
        """Add passes to each of ``rows``, as often as it is named; the tensor must not be changed in place afterwards."""
        if rows is not self._rows:
            self._flush()
            self._rows = rows
        self._pending = (self._pending[0] + forwards, self._pending[1] + backwards)

    def follow(self, outputs: Tensor, rows: Tensor | None = None, passes: float | None = None) -> Tensor:
        """Count the forward pass that gave ``outputs`` (B, ..), and each backward pass through them when it happens.

        Args:
            outputs: what the network returned.
            rows: the samples that it was about; None: all.
            passes: how many passes that was for each of them; None: B.

        Returns:
            ``outputs``.
        """
        rows, each = self._all if rows is None else rows, len(outputs) if passes is None else passes
        self.spend(rows, forwards=each)

        def count(gradient: Tensor) -> None:
            self.spend(rows, backwards=each)

        if outputs.requires_grad:
            outputs.register_hook(count)
        return outputs

    def _flush(self) -> None:
        forwards, backwards = self._pending
        self._pending = (0, 0)
        for counts, passes in ((self._forwards, forwards), (self._backwards, backwards)):
            if passes:  # a row that is named twice counts twice
                counts.index_put_((self._rows,), counts.new_full((), passes), accumulate=True)


class CountedTarget(WrappedTarget):
    """A target that counts passes: one for each row of a batch, backward ones when they happen."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.passes = PassCounter()

    def __call__(self, inputs: Tensor) -> Tensor:
        """(B, *shape) -> (B, K), the inner target's logits, with the passes counted."""
        return self.passes.follow(self.target(inputs), passes=len(inputs))

    @property
    def forwards(self) -> int:
        """Forward passes of all rows so far."""
        return self.passes.total[0]

    @property
    def backwards(self) -> int:
        """Backward passes of all rows so far."""
        return self.passes.total[1]
