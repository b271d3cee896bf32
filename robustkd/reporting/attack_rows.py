"""What was run, for the report's set-up: each attack with its parameters and its cost."""

from __future__ import annotations

from dataclasses import dataclass

from robustkd.reporting.formatting import evidence, words
from robustkd.reporting.summary import attack_names
from robustkd.scoring.results import CellResult, Results
from robustkd.scoring.summaries import AttackSummary


@dataclass(frozen=True)
class AttackRow:
    """One attack of the campaign.

    Attributes:
        name: what the campaign calls it.
        plugin: its plug-in and that one's version, of a third party's also how the hash of its source begins; "" where the results
            do not say.
        params: its parameters in words, without those that are left to the attack; "" where it has none.
        forwards, backwards: passes a sample, on average over all samples, defenses and seeds; None where no cell has a number.
    """

    name: str
    plugin: str
    params: str
    forwards: float | None
    backwards: float | None


def attack_rows(results: Results) -> list[AttackRow]:
    """Every attack of the campaign, in its order."""
    return [_row(name, results.attacks.get(name), results.cells) for name in attack_names(results)]


def _row(name: str, known: AttackSummary | None, cells: list[CellResult]) -> AttackRow:
    done = [cell for cell in cells if cell.attack == name and cell.status == "done"]
    samples = sum(cell.n for cell in done)
    plugin = params = ""
    if known is not None:
        plugin = f"{known.kind} {known.version}" + (f", source {known.source[:8]}" if known.source else "")
        given = {key: value for key, value in known.params.items() if value is not None}
        params = ", ".join(f"{words(key)} {evidence(value)}" for key, value in given.items())
    forwards, backwards = (
        total / samples if samples else None
        for total in (sum(cell.forward_passes for cell in done), sum(cell.backward_passes for cell in done))
    )
    return AttackRow(name, plugin, params, forwards, backwards)
