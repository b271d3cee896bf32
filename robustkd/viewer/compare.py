"""Two defenses side by side, on the samples that both were attacked on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robustkd.redaction import writable
from robustkd.reporting import formatting
from robustkd.reporting.samples import STANDS
from robustkd.scoring.results import DefenseResult
from robustkd.viewer.addresses import Address
from robustkd.viewer.evidence import SampleTable
from robustkd.viewer.runs import Run
from robustkd.viewer.samples import PER_PAGE, Against, Listed, against_all, listed_sample, result_of, table_of, whole
from robustkd.viewer.site import NotFound, Site, side_name

SHOWS = ("all", "a", "b", "both", "neither")
MOST_EXPORTED = 12
"""Defenses of a campaign of which an export compares every two."""


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two: a trained defense with its samples."""

    run: Run
    title: str
    defense: str
    seed: int
    table: SampleTable
    result: DefenseResult | None

    @property
    def name(self) -> str:
        """What the address of a comparison calls it."""
        return side_name(self.run.key, self.seed, self.defense)

    @property
    def data(self) -> object:
        """What tells its samples from those of other data."""
        return self.table.attacks[0].entry.meta.identity.get("test data")

    @property
    def threat(self) -> str:
        """The threat model of its worst case, in words; "" before there are results."""
        return formatting.threat(self.run.results.threat_model) if self.run.results else ""

    @property
    def judge(self) -> str:
        """The kind of the deciding judge; "" of images, and where it was not noted."""
        judge = self.run.results.judge if self.run.results else None
        return judge.kind if judge else ""

    @property
    def holds(self) -> np.ndarray:
        """(N,) bool, which samples withstand every attack of the worst case."""
        holds: np.ndarray = self.table.eligible & (self.table.state() == STANDS)
        return holds


@dataclass(frozen=True)
class Choice:
    """A defense that may be compared with."""

    name: str
    title: str
    defense: str
    seed: int
    same: bool


@dataclass(frozen=True)
class Pair:
    """One sample under both."""

    a: Listed
    b: Listed


def compare_page(site: Site, wanted: Address) -> str:
    """The defenses ``a`` and ``b`` on the samples of ``show``, or on the sample ``n`` of ``a``; without ``b`` a choice of it."""
    a = _side(site, wanted.get("a"))
    if not wanted.get("b"):
        return site.render("choose.html.j2", wanted, a=a, choices=_choices(site, a))
    b = _side(site, wanted.get("b"))
    if a.data != b.data:
        raise NotFound(f"{a.defense} and {b.defense} were attacked on other samples, which cannot be set side by side")
    _, of_a, of_b = np.intersect1d(a.table.index, b.table.index, return_indices=True)
    order = np.argsort(of_a)
    of_a, of_b = of_a[order], of_b[order]
    if wanted.get("n"):
        return _one_sample(site, wanted, a, b, of_a, of_b)
    in_a, in_b = a.holds[of_a], b.holds[of_b]
    wanted_rows = {"a": in_a & ~in_b, "b": in_b & ~in_a, "both": in_a & in_b, "neither": ~in_a & ~in_b}
    counts = {"all": len(of_a), **{name: int(rows.sum()) for name, rows in wanted_rows.items()}}
    show = wanted.get("show", "all") if wanted.get("show") in SHOWS else "all"
    chosen = np.flatnonzero(wanted_rows.get(show, np.ones(len(of_a), dtype=bool)))
    if site.most_samples is not None:
        chosen = chosen[of_a[chosen] < site.most_samples]
    pages = max(1, -(-len(chosen) // PER_PAGE))
    page = whole(wanted.get("page"), 1, pages)
    data = site.data(a.run, a.table.attacks[0].entry)
    pairs = [
        Pair(
            listed_sample(site, a.run, a.table, data, int(of_a[at])),
            listed_sample(site, b.run, b.table, data, int(of_b[at])),
        )
        for at in chosen[(page - 1) * PER_PAGE : page * PER_PAGE]
    ]
    return site.render(
        "compare.html.j2",
        wanted,
        a=a,
        b=b,
        judged_otherwise=_judged_otherwise(a, b),
        counts=counts,
        show=show,
        pairs=pairs,
        page=page,
        pages=pages,
        listed=len(chosen),
    )


def _judged_otherwise(a: Side, b: Side) -> bool:
    """Whether another judge decides for one than for the other, or one that is set otherwise."""
    judges = [side.run.results.judge if side.run.results else None for side in (a, b)]
    return None not in judges and judges[0] != judges[1]


def _one_sample(site: Site, wanted: Address, a: Side, b: Side, of_a: np.ndarray, of_b: np.ndarray) -> str:
    at = np.flatnonzero(of_a == whole(wanted.get("n"), 0, 2**31))
    if not len(at):
        raise NotFound(f"{a.defense} and {b.defense} were not both attacked on a sample {wanted.get('n')}")
    row_a, row_b = int(of_a[at[0]]), int(of_b[at[0]])
    data = site.data(a.run, a.table.attacks[0].entry)  # the same samples
    by_a, by_b = (
        {one.attack: one for one in against_all(site, side.run, side.table, data, row)}
        for side, row in ((a, row_a), (b, row_b))
    )
    shown = [(a, listed_sample(site, a.run, a.table, data, row_a)), (b, listed_sample(site, b.run, b.table, data, row_b))]
    attacks: list[tuple[Against | None, Against | None]] = [(by_a.get(name), by_b.get(name)) for name in {**by_a, **by_b}]
    return site.render("side_by_side.html.j2", wanted, a=a, b=b, sides=shown, attacks=attacks)


def _side(site: Site, name: str) -> Side:
    key, _, rest = name.partition("/")
    seed, _, defense = rest.partition("/")
    run, found, number = site.trained(Address("", (("run", key), ("defense", writable(defense)), ("seed", seed or "0"))))
    table = table_of(site, run, found, number)
    return Side(run, site.runs.titles()[run.key], found, number, table, result_of(run, found, number))


def _choices(site: Site, a: Side) -> list[Choice]:
    """The other defenses, those of the same campaign and seed first; in an export these alone, and none where they are many."""
    found: list[Choice] = []
    titles = site.runs.titles()
    for run in site.runs.all():
        same_data = run.results is not None and a.run.results is not None and _data(run) == _data(a.run)
        if run.key != a.run.key and (site.exported or not same_data):
            continue
        trained = dict.fromkeys((place.defense, place.seed) for place in run.attacks())
        for defense, seed in trained:
            own = run.key == a.run.key
            if own and (defense, seed) == (a.defense, a.seed):
                continue
            if site.exported and (seed != a.seed or len(trained) > MOST_EXPORTED):
                continue
            found.append(Choice(side_name(run.key, seed, defense), titles[run.key], defense, seed, own and seed == a.seed))
    return sorted(found, key=lambda choice: not choice.same)


def _data(run: Run) -> str:
    return run.results.data.identity if run.results else ""
