"""The values behind a finding, and how those that are shares are told from other numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from robustkd.contracts.json_value import JsonValue


class Share(float):
    """A share of a whole in [0, 1], or the difference of two shares; reports show 0.5 as 50 %.

    Every other float is shown as the number that it is, and an int as a count.
    """

    __slots__ = ()


Evidence = JsonValue
"""One piece of evidence: a ``Share``, a number, a count, a text, or a list or mapping of such."""


def shares(value: Evidence, pointer: str = "") -> Iterator[tuple[str, Share]]:
    """Every share in ``value``, with the JSON pointer (RFC 6901) to it."""
    if isinstance(value, Share):
        yield pointer, value
    for key, item in _items(value):
        yield from shares(item, f"{pointer}/{_escaped(key)}")


def with_shares(value: Evidence, pointers: Collection[str], pointer: str = "") -> Evidence:
    """``value`` with the numbers that ``pointers`` lead to as shares: JSON does not tell them from other numbers."""
    if pointer in pointers and isinstance(value, int | float):
        return Share(value)
    if isinstance(value, Mapping):
        return {key: with_shares(item, pointers, f"{pointer}/{_escaped(key)}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_shares(item, pointers, f"{pointer}/{at}") for at, item in enumerate(value)]
    return value


_FORMER = ("share", "accuracy", "rate", "fraction", "robust", "standing", "ci_low", "ci_high")


def shares_by_name(value: Evidence, pointer: str = "") -> Iterator[str]:
    """Pointers to what was shown as a share before findings said which numbers are: in [0, 1], under a key with such a word."""
    if isinstance(value, float) and 0 <= value <= 1 and any(word in pointer for word in _FORMER):
        yield pointer
    for key, item in _items(value):
        yield from shares_by_name(item, f"{pointer}/{_escaped(key)}")


def _items(value: Evidence) -> Iterator[tuple[str, Evidence]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from ((str(at), item) for at, item in enumerate(value))


def _escaped(key: str) -> str:
    return str(key).replace("~", "~0").replace("/", "~1")
