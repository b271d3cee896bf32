"""Whether a defense holds, in a word: what its robust accuracy says, which its verdict does not."""

from __future__ import annotations

from typing import Literal, TypeAlias

Holds: TypeAlias = Literal["yes", "in part", "no"]
HARDLY_ANY, NEARLY_ALL = 0.2, 0.9


def holds(robust_accuracy: float | None, verdict: str | None) -> Holds | None:
    """``no`` where at most a fifth of the samples withstand every attack, ``yes`` where nine tenths do, ``in part`` between; ours.

    None where it cannot be said: there is no number, or one that is not credible and could only be lower.
    """
    if robust_accuracy is None:
        return None
    if robust_accuracy <= HARDLY_ANY:
        return "no"
    if verdict == "not credible":
        return None
    return "yes" if robust_accuracy >= NEARLY_ALL else "in part"
