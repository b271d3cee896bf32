"""Defense x attack, seeds combined: the heat map as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from robustkd.reporting.summary import attack_names, cells_by_pair, defense_names, mean, worst_status
from robustkd.scoring.results import CellResult, CellStatus, Results


@dataclass(frozen=True)
class GridCell:
    """One attack on one defense.

    Attributes:
        value: mean robust accuracy over the seeds that have one, or None.
        status: the worst over seeds; ``skipped`` when planned out, ``absent`` when the campaign has no such pair.
        reason: why there is no value, or why it stands on fewer seeds; empty when all is well.
        finished, seeds: on how many seeds the value stands, out of how many.
        ci_low, ci_high: the envelope of the seeds' 95 % intervals, or None.
    """

    defense: str
    attack: str
    value: float | None
    status: CellStatus | Literal["skipped", "absent"]
    reason: str = ""
    finished: int = 0
    seeds: int = 0
    ci_low: float | None = None
    ci_high: float | None = None


def grid(results: Results) -> list[list[GridCell]]:
    """One row per defense, one column per attack, in the campaign's order."""
    attacks, pairs = attack_names(results), cells_by_pair(results)
    return [
        [_cell(results, defense, attack, pairs.get((defense, attack), [])) for attack in attacks]
        for defense in defense_names(results)
    ]


def incomplete_cells(rows: list[list[GridCell]]) -> list[GridCell]:
    """The cells that need a word of explanation."""
    return [cell for row in rows for cell in row if cell.reason]


def _cell(results: Results, defense: str, attack: str, cells: Sequence[CellResult]) -> GridCell:
    if not cells:
        reasons = [item.reason for item in results.skipped if (item.defense, item.attack) == (defense, attack)]
        return GridCell(defense, attack, None, "skipped" if reasons else "absent", "; ".join(reasons))
    known = [cell.robust_accuracy for cell in cells if cell.robust_accuracy is not None]
    errors = dict.fromkeys(cell.error or "no result yet" for cell in cells if cell.status != "done")
    reason = "; ".join(errors)
    if known and len(known) < len(cells):
        reason = f"mean of {len(known)} of {len(cells)} seeds" + (f": {reason}" if reason else "")
    return GridCell(
        defense,
        attack,
        mean(known),
        worst_status(cell.status for cell in cells),
        reason,
        len(known),
        len(cells),
        min((cell.ci_low for cell in cells if cell.ci_low is not None), default=None),
        max((cell.ci_high for cell in cells if cell.ci_high is not None), default=None),
    )
