"""Threats that say how an image changes, other than by a norm: which keys belong together."""

from __future__ import annotations

from collections.abc import Collection

KINDS_OF_CHANGE = {
    "rotation and translation": {"rotation", "translation", "padding"},
    "flow": {"flow"},
    "colour": {"colour", "resolution", "colour_space"},
    "perceptual": {"perceptual", "metric", "layers"},
}
"""The keys of a threat that say how an image changes, by the kind of change."""
CHANGE_KEYS = frozenset().union(*KINDS_OF_CHANGE.values())
_OPTIONS = {"padding", "resolution", "colour_space", "metric", "layers"}
"""The keys that say more of a budget, and are none themselves."""


def change_problem(given: Collection[str]) -> tuple[str, str] | None:
    """What is wrong with these keys of a threat, and the fix; None where they name one kind of change and nothing else."""
    kinds = [kind for kind, words in KINDS_OF_CHANGE.items() if words & set(given)]
    others = sorted(set(given) & {"norm", "eps", "attempts"})
    if len(kinds) > 1 or others:
        return f"{' and '.join([*kinds, *others])} are different budgets", "give one; an attack may have a threat of its own"
    if alone := sorted(_OPTIONS & set(given)):
        budgets = KINDS_OF_CHANGE[kinds[0]] - _OPTIONS
        if not budgets & set(given):
            return f"{alone[0]} without a budget", f"add {' or '.join(sorted(budgets))}"
    return None
