"""Whether the tensors of a file are those of a network: a part that is not in the file would be random numbers."""

from __future__ import annotations

from collections.abc import Collection

from robustkd.contracts import TargetError

_SHOWN = 3


def require_fit(
    source: object,
    *,
    missing: Collection[str] = (),
    unexpected: Collection[str] = (),
    mismatched: Collection[str] = (),
    fix: str | None = None,
) -> None:
    """Nothing, where the three are empty.

    Args:
        source: the file or folder with the weights.
        missing: tensors of the network that are not in it.
        unexpected: tensors in it that the network does not have.
        mismatched: those whose shapes differ.
        fix: what to do then; default: to check the architecture.

    Raises:
        TargetError: it names the first of each.
    """
    problems = (("lacks", missing), ("has unknown", unexpected), ("differs in shape at", mismatched))
    if said := "; it ".join(f"{text} {listed(names)}" for text, names in problems if names):
        raise TargetError(
            f"{source} does not fit the network: it {said}", fix=fix or "check the architecture and its parameters"
        )


def listed(names: Collection[str]) -> str:
    """The first few of the names, and how many more there are."""
    shown = ", ".join(sorted(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
