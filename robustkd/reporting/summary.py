"""The headline of each defense, its seeds combined: what the page, the Markdown and the terminal's table all show.

Seeds share their test samples, so pooling them would give an interval that is too narrow. An interval here is the
envelope of the seeds' own intervals, and the spread between seeds is a second, separate pair of numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import starmap
from typing import Literal

from robustkd.contracts.check import Finding, Verdict
from robustkd.scoring.bracket import Bracket
from robustkd.scoring.holds import UNKNOWN, Holds, Standing, standings
from robustkd.scoring.intervals import count_of, wilson
from robustkd.scoring.results import CURVE_STEPS, CellResult, CellStatus, CurvePoint, DefenseResult, Results
from robustkd.scoring.tradeoff import nrr, w_robust
from robustkd.scoring.unfinished import is_headline

STATUS_WORST_FIRST: tuple[CellStatus, ...] = ("failed", "invalid", "blocked", "pending", "done")
SEVERITY_WORST_FIRST = ("severe", "warning", "info")


@dataclass(frozen=True)
class DefenseSummary:
    """One defense over its seeds; accuracies are shares in [0, 1], None where no seed has the number.

    Attributes:
        clean_accuracy, robust_accuracy: means over the seeds that have them.
        ci_low, ci_high: the envelope of the seeds' 95 % intervals of the robust accuracy.
        spread_low, spread_high: the lowest and the highest seed's robust accuracy.
        w_robust, nrr: arithmetic and harmonic mean of clean and robust accuracy, averaged over the seeds.
        strongest_attack: of those behind ``robust_accuracy``, the one with the lowest mean; the first of equals.
        verdict: the worst over seeds; None while a seed lacks one, unless another seed's is `not credible` already.
        fired_checks: names, severe ones first.
        status: the worst over seeds.
        per_attack: every attack of the campaign, in its order, to its mean robust accuracy on this defense.
        remedied: mean of what the attacks that checks named leave (where none was needed, of the robust accuracy itself); None
            when no seed has such a number.
        remedies: their kinds, in order, each with the mean of what is left after it, over the seeds that it was run on.
        unjudged: mean share of the requests that could not be judged; None of images.
        brackets: of each seed that has one.
        standing: whether it holds, and why (see ``scoring.holds``).
    """

    defense: str
    seeds: tuple[int, ...]
    clean_accuracy: float | None
    robust_accuracy: float | None
    ci_low: float | None
    ci_high: float | None
    spread_low: float | None
    spread_high: float | None
    w_robust: float | None
    nrr: float | None
    strongest_attack: str | None
    verdict: Verdict | None
    fired_checks: tuple[str, ...]
    status: CellStatus
    per_attack: dict[str, float | None]
    remedied: float | None = None
    remedies: dict[str, float] = field(default_factory=dict)
    unjudged: float | None = None
    brackets: tuple[Bracket, ...] = ()
    standing: Standing = UNKNOWN

    @property
    def certified(self) -> float | None:
        """The mean certified accuracy; None where nothing is certified."""
        return mean(one.certified for one in self.brackets)

    @property
    def attacked(self) -> float | None:
        """The mean of what neither attacks nor analyses are known to break; None where nothing is certified."""
        return mean(one.attacked for one in self.brackets)

    @property
    def exact(self) -> bool:
        """Whether certified and attacked accuracy meet, on every seed that has a certificate."""
        return bool(self.brackets) and all(one.exact for one in self.brackets)

    @property
    def holds(self) -> Holds | None:
        """Whether the defense holds; None where it cannot be said."""
        return self.standing.holds


def summary_rows(results: Results) -> list[DefenseSummary]:
    """One row per defense, in the campaign's order."""
    pairs, attacks, standing = cells_by_pair(results), attack_names(results), standings(results)
    return [
        _summary(results, name, {attack: pairs.get((name, attack), []) for attack in attacks}, standing.get(name, UNKNOWN))
        for name in defense_names(results)
    ]


def cells_by_pair(results: Results) -> dict[tuple[str, str], list[CellResult]]:
    """The cells of each defense and attack, one a seed: a large campaign is gone through once, not once for each pair."""
    pairs: dict[tuple[str, str], list[CellResult]] = {}
    for cell in results.cells:
        pairs.setdefault((cell.defense, cell.attack), []).append(cell)
    return pairs


def defense_names(results: Results) -> list[str]:
    """Every defense that has a result, or should have one, in the campaign's order; not one that only helps others."""
    return _unique([item.defense for item in results.defenses] + [cell.defense for cell in results.cells])


def attack_names(results: Results) -> list[str]:
    """Every attack of the campaign, in its order."""
    return _unique([cell.attack for cell in results.cells] + [pair.attack for pair in results.skipped])


def seeds_of(results: Results) -> list[int]:
    """Every seed of the campaign, ascending."""
    return list(_seeds(results.defenses, results.cells))


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are there, or None."""
    known = _known(values)
    return sum(known) / len(known) if known else None


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def curve_of(item: CellResult | DefenseResult) -> list[CurvePoint]:
    """Its curve, of images from eps = 0: what stands without any change is what was classified rightly."""
    if not item.curve or item.clean_accuracy is None or item.curve[0].eps <= 0 or not item.budget.of_images:
        return item.curve
    low, high = wilson(count_of(item.clean_accuracy, item.n), item.n)
    return [CurvePoint(0.0, item.clean_accuracy, low, high), *item.curve]


def joined(points: Sequence[CurvePoint], *, everywhere: bool) -> list[bool]:
    """Whether a line may lead from the point before to each point: whether what is between was measured as well.

    Attacks of a fixed budget know the accuracy at the eps that they were run at. Points as dense as ``CURVE_STEPS`` come from attacks
    that know it everywhere; so does a curve over attempts, each of which was judged.
    """
    if everywhere:
        return [place > 0 for place in range(len(points))]
    gap = max((point.eps for point in points), default=0.0) / CURVE_STEPS * (1 + 1e-6)
    return [place > 0 and point.eps - points[place - 1].eps <= gap for place, point in enumerate(points)]


def mean_curve(curves: Iterable[Sequence[CurvePoint]]) -> list[CurvePoint]:
    """The seeds' curves as one: mean accuracy, envelope of the intervals.

    Only the eps that every seed has are kept: a mean over changing sets of seeds would jump for no reason.
    """
    by_eps = [{round(point.eps, 9): point for point in curve} for curve in curves if curve]
    if not by_eps:
        return []
    shared = sorted(set.intersection(*(set(points) for points in by_eps)))
    rows = [[points[eps] for points in by_eps] for eps in shared]
    return [
        CurvePoint(
            row[0].eps,
            sum(point.robust_accuracy for point in row) / len(row),
            min(point.ci_low for point in row),
            max(point.ci_high for point in row),
        )
        for row in rows
    ]


def worst_verdict(verdicts: Sequence[Verdict | None]) -> Verdict | None:
    """The verdict on several seeds together.

    What is missing cannot mend a severe finding, but it may still turn a `credible` or a `suspect` into something worse.
    """
    if "not credible" in verdicts:
        return "not credible"
    if not verdicts or None in verdicts:
        return None
    return "suspect" if "suspect" in verdicts else "credible"


def worst_status(statuses: Iterable[CellStatus]) -> CellStatus:
    """The status of several cells together; `pending` when there are none."""
    return min(statuses, key=STATUS_WORST_FIRST.index, default="pending")


def _summary(results: Results, name: str, by_attack: Mapping[str, Sequence[CellResult]], standing: Standing) -> DefenseSummary:
    trained = [item for item in results.defenses if item.defense == name]
    cells = [cell for found in by_attack.values() for cell in found]
    per_attack = {attack: mean(cell.robust_accuracy for cell in found) for attack, found in by_attack.items()}
    robust, pairs = _values(trained, "robust_accuracy"), _accuracies(trained)
    return DefenseSummary(
        defense=name,
        seeds=_seeds(trained, cells),
        clean_accuracy=mean(_values(trained, "clean_accuracy")),
        robust_accuracy=mean(robust),
        ci_low=min(_values(trained, "ci_low"), default=None),
        ci_high=max(_values(trained, "ci_high"), default=None),
        spread_low=min(robust, default=None),
        spread_high=max(robust, default=None),
        w_robust=mean(starmap(w_robust, pairs)),
        nrr=mean(starmap(nrr, pairs)),
        strongest_attack=_strongest(results, trained, cells, per_attack),
        verdict=worst_verdict([item.verdict for item in trained]),
        fired_checks=tuple(_unique(finding.name for finding in fired(trained))),
        status=worst_status(item.status for item in trained),
        per_attack=per_attack,
        remedied=_remedied(trained),
        remedies=_remedies(trained),
        unjudged=mean(item.unjudged for item in trained),
        brackets=tuple(item.bracket for item in trained if item.bracket is not None),
        standing=standing,
    )


def _seeds(trained: Iterable[DefenseResult], cells: Iterable[CellResult]) -> tuple[int, ...]:
    """Every seed that has a result, or should have one, ascending."""
    return tuple(sorted({item.seed for item in trained} | {cell.seed for cell in cells}))


def _values(
    trained: Iterable[DefenseResult], name: Literal["clean_accuracy", "robust_accuracy", "ci_low", "ci_high"]
) -> list[float]:
    """One number of each seed that has it."""
    return _known(getattr(item, name) for item in trained)


def _accuracies(trained: Sequence[DefenseResult]) -> list[tuple[float, float]]:
    """Clean and robust accuracy of the seeds that have both."""
    both = ((item.clean_accuracy, item.robust_accuracy) for item in trained)
    return [(clean, robust) for clean, robust in both if clean is not None and robust is not None]


def _remedies(trained: Sequence[DefenseResult]) -> dict[str, float]:
    left = {
        item.seed: item.remedy.robust_accuracy + item.remedy.broken / max(1, item.remedy.n) for item in trained if item.remedy
    }
    steps = {item.seed: item.remedy.steps for item in trained if item.remedy}
    found = {}
    for name in _unique(name for step in steps.values() for name in step):
        # A seed on which it broke nothing stays where the attacks before it left it.
        left |= {seed: step[name] for seed, step in steps.items() if name in step}
        found[name] = mean(left.values()) or 0.0
    return found


def _remedied(trained: Sequence[DefenseResult]) -> float | None:
    if not any(item.remedy for item in trained):
        return None
    return mean(item.remedy.robust_accuracy if item.remedy else item.robust_accuracy for item in trained)


def fired(trained: Iterable[DefenseResult]) -> list[Finding]:
    """The checks that fired on any seed, severe ones first."""
    findings = [finding for item in trained for finding in item.checks if finding.fired]
    return sorted(findings, key=lambda finding: SEVERITY_WORST_FIRST.index(finding.severity))


def not_run(trained: Iterable[DefenseResult]) -> list[Finding]:
    """The checks that could not be run on some seed."""
    return [finding for item in trained for finding in item.checks if finding.outcome == "not run"]


def headline_attacks(results: Results, trained: Sequence[DefenseResult], cells: Sequence[CellResult]) -> set[str]:
    """The attacks that count for the worst case; before scoring named them, those under the campaign's threat model."""
    named = {attack for item in trained for attack in item.attacks}
    return named or {cell.attack for cell in cells if is_headline(results, cell)}


def _strongest(
    results: Results, trained: Sequence[DefenseResult], cells: Sequence[CellResult], per_attack: dict[str, float | None]
) -> str | None:
    counted = headline_attacks(results, trained, cells)
    known = {attack: value for attack, value in per_attack.items() if value is not None and attack in counted}
    return min(known, key=lambda attack: known[attack], default=None)


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
