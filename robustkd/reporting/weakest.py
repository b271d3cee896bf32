"""The worst class and the worst group of each trained defense, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from robustkd.reporting.formatting import MISSING, count, interval, percent
from robustkd.scoring.results import Results
from robustkd.scoring.weakest import GroupAccuracy, Weakest

NOTE = (
    "Robust accuracy of the samples of which the fewest stand, over all attacks under the campaign's threat model. Which part that is was "
    "chosen by these samples: the interval is that of the smallest true robust accuracy of all parts, made of intervals that hold for "
    "all of them together with 95 % (Bonferroni). Groups are told before and after all attacks, each with its own interval of the latter."
)


@dataclass(frozen=True)
class WeakestRow:
    """One trained defense: its worst class and, where the campaign names groups, its worst group, and each group, clean and attacked."""

    defense: str
    seed: int
    worst_class: str
    worst_group: str
    groups: str


def weakest_rows(results: Results) -> list[WeakestRow]:
    """A row for each trained defense that has a number."""
    return [
        WeakestRow(one.defense, one.seed, _told(one.worst_class), _told(one.worst_group), _each(one.groups))
        for one in results.defenses
        if one.worst_class is not None
    ]


def _each(groups: Mapping[str, GroupAccuracy]) -> str:
    told = [
        f"{name}: {percent(of.clean_accuracy)} -> {percent(of.robust_accuracy)} ({interval(of.ci_low, of.ci_high)}) of {count(of.n)}"
        for name, of in groups.items()
    ]
    return "; ".join(told) or MISSING


def _told(found: Weakest | None) -> str:
    if found is None:
        return MISSING
    return f"{found.name}: {percent(found.robust_accuracy)} of {count(found.n)} ({interval(found.ci_low, found.ci_high)})"
