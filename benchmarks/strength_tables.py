"""Write the tables of docs/strength.md from results/strength.json, each in the place of the one between its two marks."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from _comparisons import COMPARISONS, MINIMUM_NORM
from _harness import RESULTS, Measurement
from strength import OTHERS

PAGE = Path(__file__).parents[1] / "docs" / "strength.md"
TABLE = re.compile(r"<!-- table: (.+?) -->\n.*?<!-- end of the table -->", re.DOTALL)
"""A table's name is a network, of attacks within a norm on it, or the comparisons in it."""

NAMES = {
    "adv-lib": "adversarial-library",
    "art": "ART",
    "authors": "its authors'",
    "formula": "the formula",
    "transferattack": "TransferAttack",
}
BUDGETS = {
    "stadv": "{eps:g} pixels of flow",
    "recolor": "{eps:g} in CIELUV",
    "rotate-grid": "15°, 2 pixels",
    "rotate-pgd": "15°, 2 pixels",
    "lpa": "{eps:g} in the stages' features",
    "ppgd": "{eps:g} in the stages' features",
}
"""Of threats that are no norm, in words."""
UNSAID = ("step_size", "peer_step_size", "peer_steps", "lr", "delta", "batch_size", "decay", "gamma")
"""Settings that are no cost."""


def tables(rows: Sequence[Measurement], page: str) -> str:
    """``page`` with every table made anew.

    Raises:
        click.ClickException: nothing was measured of a table.
    """

    def made(match: re.Match[str]) -> str:
        lines = list(_table(match[1], rows))
        if not lines:
            raise click.ClickException(f"{RESULTS / 'strength.json'} has no row of the table '{match[1]}'")
        return "\n".join((f"<!-- table: {match[1]} -->", *lines, "<!-- end of the table -->"))

    return TABLE.sub(made, page)


def _table(name: str, rows: Sequence[Measurement]) -> Iterator[str]:
    kind, _, wanted = name.partition(" ")
    ours = [row for row in rows if row["implementation"] == "robustkd" and _is_in(row, kind, wanted.split())]
    if not ours:
        return
    nearest = all(row["comparison"] in MINIMUM_NORM for row in ours)
    yield f"| attack | network, images | {'' if nearest else 'budget | '}robustkd | its peers | passes of an image |"
    yield "|---" * (5 if nearest else 6) + "|"
    for row in ours:
        peers = [peer for peer in rows if _same(row, peer) and peer["implementation"] != "robustkd"]
        cells = [
            f"`{COMPARISONS[row['comparison']].ours}`{_settings(row)}",
            f"`{row['network']}`, {row['images']}",
            *([] if nearest else [_budget(row)]),
            _found(row, nearest),
            "; ".join(f"{_named(peer)} {_found(peer, nearest)}" for peer in peers),
            "; ".join(_passes(one) for one in (row, *peers)),
        ]
        yield f"| {' | '.join(cells)} |"


def _is_in(row: Measurement, kind: str, wanted: Sequence[str]) -> bool:
    if kind == "attacks":
        return any(re.fullmatch(one.replace("*", ".*"), row["comparison"]) for one in wanted)
    together = row["comparison"] not in {comparison for comparison, *_ in OTHERS}
    return together and row["network"] in wanted and (row["comparison"] in MINIMUM_NORM) == (kind == "nearest")


def _same(one: Measurement, other: Measurement) -> bool:
    return all(one[key] == other[key] for key in ("comparison", "network", "images", "eps", "budget"))  # type: ignore[literal-required]


def _settings(row: Measurement) -> str:
    said = [f"{key} {value}" for key, value in COMPARISONS[row["comparison"]].params.items()]
    said += [f"{value} {key.replace('_', ' ')}" for key, value in row["budget"].items() if key not in UNSAID]
    norm = COMPARISONS[row["comparison"]].norm
    if row["comparison"] in MINIMUM_NORM:
        said.insert(0, norm)
    return "".join(f", {one}" for one in said)


def _budget(row: Measurement) -> str:
    eps, norm = row["eps"], COMPARISONS[row["comparison"]].norm
    if row["comparison"] in BUDGETS:
        return BUDGETS[row["comparison"]].format(eps=eps)
    if norm == "patch":
        return f"{eps:.0f} x {eps:.0f} pixels"
    if norm == "l0":
        return f"{eps:.0f} pixels"
    levels = 255 * eps
    return f"{norm} {levels:.0f}/255" if levels < 16 and math.isclose(levels, round(levels)) else f"{norm} {eps:g}"


def _found(row: Measurement, nearest: bool) -> str:
    """What stands, or the median distance and what was found: means over seeds, and each where they differ."""
    if "error" in row:
        return "no result"
    if not nearest:
        return f"{100 * row['robust_accuracy']:.1f} %{_each([100 * share for share in row['robust_accuracies']], '.1f')}"
    found = f"{100 * row['success']:.0f} % found"
    if math.isinf(row["median_norm"]):
        return found
    return f"{row['median_norm']:.4g}{_each(row['median_norms'], '.4g')}, {found}"


def _each(values: Sequence[float], form: str) -> str:
    said = [format(value, form) for value in values]
    return f" ({', '.join(said)})" if len(set(said)) > 1 else ""


def _named(row: Measurement) -> str:
    return NAMES.get(row["implementation"], row["implementation"])


def _passes(row: Measurement) -> str:
    return "-" if "error" in row else f"{row['forwards']:.0f} + {row['backwards']:.0f}"


@click.command()
def main() -> None:
    """Write the tables anew."""
    rows: list[Any] = json.loads((RESULTS / "strength.json").read_text(encoding="utf-8"))["rows"]
    PAGE.write_text(tables(rows, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written to {PAGE}")


if __name__ == "__main__":
    main()
