"""What stronger attacks leave, where a check showed that the campaign's own were not strong enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robustkd.scoring.intervals import wilson


@dataclass(frozen=True)
class Remedy:
    """The number beside a doubtful one: the worst case per sample over the campaign's attacks and those that the checks named.

    It is an upper bound too, and has not been checked in its turn.

    Attributes:
        attacks: what was run on the samples that still stood, in order, as in a campaign file.
        skipped: kinds that could not be used here, and why.
        robust_accuracy, ci_low, ci_high: share of all n samples that stand in the end, with its 95 % Wilson interval.
        broken: samples that only these attacks broke.
        forward_passes, backward_passes: what they cost, over all samples.
    """

    attacks: list[dict[str, Any]]
    robust_accuracy: float
    ci_low: float
    ci_high: float
    broken: int
    n: int
    skipped: dict[str, str] = field(default_factory=dict)
    forward_passes: int = 0
    backward_passes: int = 0

    @property
    def names(self) -> list[str]:
        """The kinds of its attacks."""
        return list(dict.fromkeys(str(attack["kind"]) for attack in self.attacks))

    @classmethod
    def of(
        cls,
        attacks: Sequence[Mapping[str, Any]],
        skipped: Mapping[str, str],
        before: np.ndarray,
        after: np.ndarray,
        forwards: int,
        backwards: int,
    ) -> Remedy:
        """From the (N,) samples that stood before and after."""
        low, high = wilson(int(after.sum()), len(after))
        broken = int(before.sum() - after.sum())
        return cls(
            [dict(spec) for spec in attacks],
            float(after.mean()),
            low,
            high,
            broken,
            len(after),
            dict(skipped),
            forwards,
            backwards,
        )
