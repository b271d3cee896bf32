"""What stronger attacks leave, where a check showed that the campaign's own were not strong enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robustkd.contracts.json_value import JsonValue
from robustkd.scoring.intervals import share_interval


@dataclass(frozen=True)
class Remedy:
    """The number beside a doubtful one: the worst case per sample over the campaign's attacks and those that the checks named.

    It is an upper bound too, and has not been checked in its turn.

    Attributes:
        attacks: what was run, in order, as in a campaign file; each on the samples that all before it had left standing.
        left: the robust accuracy after each of them.
        skipped: kinds that could not be used here, and why.
        robust_accuracy, ci_low, ci_high: share of all n samples that stand in the end, with its 95 % Wilson interval.
        broken: samples that only these attacks broke.
        forward_passes, backward_passes: what they cost, over all samples.
        stopped: why no further attack was run though the last ones still broke samples; "" where none was left or needed.
    """

    attacks: list[dict[str, JsonValue]]
    robust_accuracy: float
    ci_low: float
    ci_high: float
    broken: int
    n: int
    left: list[float] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    forward_passes: int = 0
    backward_passes: int = 0
    stopped: str = ""

    @property
    def steps(self) -> dict[str, float]:
        """Each attack that broke a sample, in order, and what is left after it; all of them where none did.

        An attack is called by its kind, numbered where the same kind came before.
        """
        labels = [str(attack["kind"]) for attack in self.attacks]
        labels = [f"{name} #{n}" if (n := labels[: i + 1].count(name)) > 1 else name for i, name in enumerate(labels)]
        formers = [self.robust_accuracy + self.broken / max(1, self.n), *self.left]
        each = zip(labels, self.left, formers, strict=False)
        lowered = {label: left for label, left, former in each if left < former - 1e-9}
        return lowered or dict(zip(labels, self.left, strict=True))

    @property
    def names(self) -> list[str]:
        """The kinds of the attacks that were run, in order, each once."""
        return list(dict.fromkeys(str(attack["kind"]) for attack in self.attacks))

    @classmethod
    def of(
        cls,
        attacks: Sequence[tuple[Mapping[str, Any], np.ndarray]],
        skipped: Mapping[str, str],
        before: np.ndarray,
        forwards: int,
        backwards: int,
        stopped: str = "",
    ) -> Remedy:
        """From the (N,) samples that stood before, and after each attack; bool, or in [0, 1] where they were judged on draws."""
        after = attacks[-1][1] if attacks else before
        low, high = share_interval(after)
        return cls(
            attacks=[dict(spec) for spec, _ in attacks],
            robust_accuracy=float(after.mean()),
            ci_low=low,
            ci_high=high,
            broken=round(float(before.sum()) - float(after.sum())),
            n=len(after),
            left=[float(standing.mean()) for _, standing in attacks],
            skipped=dict(skipped),
            forward_passes=forwards,
            backward_passes=backwards,
            stopped=stopped,
        )
