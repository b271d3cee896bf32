"""Two campaigns on the same samples: what changed from A to B, per defense, attack and seed, and how surely.

Seeds share their test samples, so they are never pooled: each has its own paired test, and what is said of a defense's networks is
what all of its seeds say. What is said of the method takes the trainings as random. Both are corrected for all that is compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np

from robustkd.campaigns.comparison.snapshot import CLEAN, WORST, Row, Snapshot
from robustkd.campaigns.plan.changes import parameter_diff
from robustkd.contracts import UsageError, suggestion
from robustkd.contracts.json_value import JsonValue
from robustkd.scoring.intervals import Z95
from robustkd.scoring.methods import MethodTest, over_trainings
from robustkd.scoring.multiplicity import LEVEL, holm
from robustkd.scoring.paired import paired_interval, paired_test, unpaired_interval, unpaired_test
from robustkd.scoring.summaries import PluginSummary
from robustkd.scoring.tabular import Tabular, percent

Direction = Literal["better", "worse", "not told apart"]


@dataclass(frozen=True)
class Change:
    """One share of B minus that of A, with one seed.

    Attributes:
        a, b: the shares, in [0, 1].
        ci_low, ci_high: interval of ``difference``, 95 % unless a gate asked for more; Tango's when paired, else Newcombe's.
        paired: whether the samples are the same. If not, ``only_a``, ``only_b`` and ``p`` (see ``paired_test``) are None.
        only_a, only_b: samples that hold on that side alone; summed differences, where they hold to a share.
        p_adjusted: ``p``, or that of ``unpaired_test``, by Holm for all changes that are compared; a lone one has no others.
    """

    seed: int
    a: float
    b: float
    n_a: int
    n_b: int
    difference: float
    ci_low: float
    ci_high: float
    paired: bool
    only_a: int | float | None = None
    only_b: int | float | None = None
    p: float | None = None
    p_adjusted: float = 1.0

    @property
    def direction(self) -> Direction:
        """Whether the network of B is better or worse, at a level of 5 % for all changes that are compared."""
        return "not told apart" if self.p_adjusted >= LEVEL else "better" if self.difference > 0 else "worse"


@dataclass(frozen=True)
class Movement:
    """What changed for one defense and attack, over its seeds.

    Attributes:
        defense_b: its name in B.
        attack: an attack's name, ``clean accuracy`` or ``worst case``.
        over: of a worst case, the attacks that it is taken over: those that both sides have.
        methods: whether B's method is better or worse than A's, beyond these networks; None with one seed or other samples.
    """

    defense: str
    defense_b: str
    attack: str
    changes: tuple[Change, ...]
    over: tuple[str, ...] = ()
    methods: MethodTest | None = None

    @property
    def difference(self) -> float:
        """The mean difference over the seeds, in [-1, 1]."""
        return sum(change.difference for change in self.changes) / len(self.changes)

    @property
    def interval(self) -> tuple[float, float]:
        """The envelope of the seeds' own intervals."""
        return min(change.ci_low for change in self.changes), max(change.ci_high for change in self.changes)

    @property
    def direction(self) -> Direction:
        """The direction that all seeds agree on, else `not told apart`."""
        told = {change.direction for change in self.changes}
        return told.pop() if len(told) == 1 else "not told apart"


@dataclass(frozen=True, repr=False)
class ComparedCampaigns(Tabular):
    """A and B, side by side. Its DataFrame has a row for each change: a defense, an attack, a seed.

    Attributes:
        a, b: where they were read from.
        notes: what could not be compared, or not on the same samples, and why.
    """

    a: str
    b: str
    movements: tuple[Movement, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, JsonValue]:
        """Every movement with its direction, and the changes of its seeds."""
        movements = [
            asdict(item)
            | {
                "difference": item.difference,
                "interval": item.interval,
                "direction": item.direction,
                "changes": [asdict(change) | {"direction": change.direction} for change in item.changes],
            }
            for item in self.movements
        ]
        return {"a": self.a, "b": self.b, "notes": self.notes, "movements": movements}

    def rows(self) -> list[dict[str, JsonValue]]:
        """A row for each defense, attack and seed: the shares of A and B, and what they differ by."""
        return [
            {"defense": item.defense, "defense_b": item.defense_b, "attack": item.attack}
            | asdict(change)
            | {"direction": change.direction}
            for item in self.movements
            for change in item.changes
        ]

    def caption(self) -> str:
        """How many defenses are better and worse in their worst case."""
        told = [item.direction for item in self.movements if item.attack == WORST]
        counted = ", ".join(f"{told.count(word)} {word}" for word in ("better", "worse", "not told apart"))
        notes = f"; {len(self.notes)} notes" if self.notes else ""
        return f"A = {self.a}, B = {self.b}; defenses in the worst case: {counted}{notes}"

    def shown(self) -> list[dict[str, str]]:
        """The difference of each defense, attack and seed in percentage points, and whether B is told apart from A."""
        return [
            {
                "defense": item.defense if item.defense == item.defense_b else f"{item.defense} = {item.defense_b}",
                "attack": item.attack,
                "seed": str(one.seed),
                "A": percent(one.a),
                "B": percent(one.b),
                "B - A, points": f"{100 * one.difference:+.1f} [{100 * one.ci_low:+.1f}, {100 * one.ci_high:+.1f}]",
                "p": "not paired" if one.p is None else _p_value(one.p),
                "adjusted p": _p_value(one.p_adjusted),
                "": one.direction,
            }
            for item in self.movements
            for one in item.changes
        ]


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def compare(a: Snapshot, b: Snapshot, matched: Mapping[str, str] | None = None) -> ComparedCampaigns:
    """Compare two campaigns.

    Args:
        matched: from a defense's name in A to its name in B; by default those that are called the same.

    Raises:
        UsageError: they have no defense in common.
    """
    matched = _matched(a, b, matched)
    reason = why_unpaired(a, b)
    movements: list[Movement] = []
    judged = other_judge(a, b)
    judged = f"judged otherwise in A and B ({judged}): the numbers are other quantities" if judged else ""
    notes = [note for note in (reason, a.outdated, b.outdated, judged) if note]
    for name in dict.fromkeys(attack for _, attack, _ in a.rows):
        if differs := other_attack(a, b, name):
            notes.append(f"{name}: not the same attack in A and B ({differs})")
    for defense, other in matched.items():
        moved, noted = _compared_defense(a, b, defense, other, paired=not reason)
        movements += moved
        notes += noted
    return ComparedCampaigns(a.origin, b.origin, _corrected(movements), tuple(dict.fromkeys(notes)))


def _corrected(movements: Sequence[Movement]) -> tuple[Movement, ...]:
    """The movements with their p-values adjusted: those of all changes together, and those of all methods together."""
    changes = iter(holm([change.p_adjusted for item in movements for change in item.changes]))
    methods = [_methods(item) for item in movements]
    several = iter(holm([test.p for test in methods if test]))
    return tuple(
        replace(
            item,
            changes=tuple(replace(change, p_adjusted=next(changes)) for change in item.changes),
            methods=replace(test, p_adjusted=next(several)) if test else None,
        )
        for item, test in zip(movements, methods, strict=True)
    )


def _methods(movement: Movement) -> MethodTest | None:
    """The test of the methods, before it is corrected for the others."""
    known = [
        (item.only_a + item.only_b) / item.n_b
        for item in movement.changes
        if item.only_a is not None and item.only_b is not None
    ]
    if len(known) < len(movement.changes):
        return None
    return over_trainings([item.difference for item in movement.changes], known, movement.changes[0].n_b)


def _compared_defense(a: Snapshot, b: Snapshot, defense: str, other: str, *, paired: bool) -> tuple[list[Movement], list[str]]:
    """What changed from ``defense`` in A to ``other`` in B, and notes on what could not be compared."""
    title = defense if defense == other else f"{defense} = {other}"
    seeds = [seed for seed in a.seeds(defense) if seed in b.seeds(other)]
    if not seeds:
        have = f"A has {_listed(a.seeds(defense))}, B has {_listed(b.seeds(other))}"
        return [], [f"{title}: no seed in common ({have})"]
    attacks = [name for name in a.attacks(defense, seeds[0]) if name in b.attacks(other, seeds[0])]
    movements, notes = [], []
    for attack in (CLEAN, *attacks, WORST):
        over = shared_headline(a, b, defense, other, seeds[0]) if attack == WORST else ()
        pairs = [(seed, row_of(a, defense, attack, seed, over), row_of(b, other, attack, seed, over)) for seed in seeds]
        changes, noted = _changes_by_seed(f"{title}: {attack}", pairs, paired=paired)
        notes += noted
        differing = [differs for _, *sides in pairs if attack in attacks and (differs := other_conditions(*sides))]
        notes += [f"{title}: {attack}: not the same attack in A and B ({differs})" for differs in differing[:1]]
        if changes:
            movements.append(Movement(defense, other, attack, tuple(changes), over))
    for side, snapshot, name in (("A", a, defense), ("B", b, other)):
        alone = [attack for attack in snapshot.attacks(name, seeds[0]) if attack not in attacks]
        if alone:
            notes.append(f"{title}: {_listed(alone)} only in {side}; the worst case is over the attacks that both have")
    return movements, notes


def _changes_by_seed(
    title: str, pairs: Sequence[tuple[int, Row | None, Row | None]], *, paired: bool
) -> tuple[list[Change], list[str]]:
    """The change of each seed that has the number in A and in B, up to the first under another threat model; and notes."""
    changes: list[Change] = []
    notes: list[str] = []
    for seed, before, after in pairs:
        if before is None or after is None:
            notes.append(f"{title}, seed {seed}: no number in {'A' if before is None else 'B'}")
        elif not before.under(after):
            models = f"{before.threat} in A, {after.threat} in B"
            notes.append(f"{title}: other threat models, not compared ({models})")
            break
        else:
            changes.append(change(before, after, paired=paired))
    return changes, notes


def change(before: Row, after: Row, *, paired: bool, z: float = Z95) -> Change:
    """From one share to the other; paired when the samples are the same and known. ``z`` is the normal quantile of the interval."""
    lost = won = p = None
    if paired and before.samples is not None and after.samples is not None:
        lost, won, p = paired_test(before.samples, after.samples)
        low, high = paired_interval(won, lost, after.n, z)
        alone = p
    else:
        low, high = unpaired_interval(after.held, after.n, before.held, before.n, z)
        alone = unpaired_test(after.held, after.n, before.held, before.n)
    return Change(
        seed=after.seed,
        a=before.share,
        b=after.share,
        n_a=before.n,
        n_b=after.n,
        difference=after.share - before.share,
        ci_low=low,
        ci_high=high,
        paired=p is not None,
        only_a=lost,
        only_b=won,
        p=p,
        p_adjusted=alone,
    )


def why_unpaired(a: Snapshot, b: Snapshot) -> str | None:
    """Why the samples of A and B cannot be paired; None when they can."""
    if a.data.test != b.data.test:
        told = f"{a.data} in A, {b.data} in B"
        return f"other test samples ({told}): not paired, so the intervals are wide and also hold what the samples differ by"
    for side, snapshot in (("A", a), ("B", b)):
        if snapshot.index is None:
            return f"{side} ({snapshot.origin}) has numbers only, not its samples: not paired, so the intervals are wide"
    assert a.index is not None
    assert b.index is not None
    return None if np.array_equal(a.index, b.index) else "the test samples are in another order: not paired"


def other_attack(a: Snapshot, b: Snapshot, name: str) -> str:
    """How the attacks of one name differ from A to B; empty where they do not, or where that was not noted.

    A parameter that one side alone knows came with a release in between: whether that made it another attack, its version says.
    """
    return _differs(a.settings.get(name), b.settings.get(name))


def other_judge(a: Snapshot, b: Snapshot) -> str:
    """How the deciding judges differ from A to B; empty where they do not, or where that was not noted."""
    return _differs(*(next(iter(side.judges.values()), None) for side in (a, b)))


def other_conditions(before: Row | None, after: Row | None, *, of: str = "") -> str:
    """What else makes an attack another one (see ``CellResult``); empty where nothing does, or where that was not noted.

    ``of`` is how the names begin that are looked at.
    """
    if before is None or after is None:
        return ""
    names = [name for name, was in before.conditions.items() if after.conditions.get(name, was) != was and name.startswith(of)]
    return f"its {' and its '.join(names)} {'is another one' if len(names) == 1 else 'are others'}" if names else ""


def _differs(was: PluginSummary | None, now: PluginSummary | None) -> str:
    if was is None or now is None:
        return ""
    params = [one.params for one in (was, now)]
    known = [{key: value for key, value in own.items() if all(key in other for other in params)} for own in params]
    return parameter_diff({**was.to_dict(), "params": known[0]}, {**now.to_dict(), "params": known[1]})


def shared_headline(a: Snapshot, b: Snapshot, defense: str, other: str, seed: int) -> tuple[str, ...]:
    """The attacks under the campaign's threat model that have a number on both sides."""
    return tuple(name for name in a.headline.get((defense, seed), ()) if name in b.headline.get((other, seed), ()))


def row_of(snapshot: Snapshot, defense: str, attack: str, seed: int, over: tuple[str, ...]) -> Row | None:
    """One number of it; a worst case over the attacks ``over``."""
    return snapshot.worst(defense, seed, over) if attack == WORST else snapshot.rows.get((defense, attack, seed))


def _matched(a: Snapshot, b: Snapshot, matched: Mapping[str, str] | None) -> dict[str, str]:
    for side, snapshot, names in (("A", a, list(matched or {})), ("B", b, list((matched or {}).values()))):
        for name in names:
            if name not in snapshot.defenses:
                hint = suggestion(name, snapshot.defenses) or f"known there: {_listed(snapshot.defenses)}"
                raise UsageError(f"{side} ({snapshot.origin}) has no defense '{name}'", fix=hint)
    found = dict(matched or {name: name for name in a.defenses if name in b.defenses})
    if not found:
        raise UsageError(
            f"{a.origin} and {b.origin} have no defense of the same name (A: {_listed(a.defenses)}; B: {_listed(b.defenses)})",
            fix="say which to compare: --match NAME_IN_A=NAME_IN_B",
        )
    return found


def _listed(items: object) -> str:
    return ", ".join(str(item) for item in items) or "none"  # type: ignore[attr-defined]
