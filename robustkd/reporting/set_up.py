"""What was run, for the report's set-up: each attack with its parameters and its cost, each defense with its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from robustkd.contracts.json_value import JsonValue
from robustkd.redaction import redacted_value
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


@dataclass(frozen=True)
class DefenseRow:
    """One defense of the campaign: its name there, its plug-in, and what the campaign file says of it, in words."""

    name: str
    kind: str
    params: str


def defense_rows(defenses: Mapping[str, Mapping[str, JsonValue]]) -> list[DefenseRow]:
    """Every defense of a campaign, in its order.

    Args:
        defenses: by name the ``kind``, and the parameters; those that are None are left out.
    """
    rows = []
    for name, block in defenses.items():
        params = {key: value for key, value in block.items() if key != "kind" and value is not None}
        rows.append(DefenseRow(name, str(block.get("kind", "")), _in_words(params)))
    return rows


def attack_rows(results: Results) -> list[AttackRow]:
    """Every attack of the campaign, in its order."""
    return [_row(name, results.attacks.get(name), results.cells) for name in attack_names(results)]


def _row(name: str, known: AttackSummary | None, cells: list[CellResult]) -> AttackRow:
    done = [cell for cell in cells if cell.attack == name and cell.status == "done"]
    samples = sum(cell.n for cell in done)
    plugin = params = ""
    if known is not None:
        plugin = f"{known.kind} {known.version}" + (f", source {known.source[:8]}" if known.source else "")
        params = _in_words({key: value for key, value in known.params.items() if value is not None})
    forwards, backwards = (
        total / samples if samples else None
        for total in (sum(cell.forward_passes for cell in done), sum(cell.backward_passes for cell in done))
    )
    return AttackRow(name, plugin, params, forwards, backwards)


def _in_words(params: Mapping[str, JsonValue]) -> str:
    return ", ".join(f"{words(key)} {evidence(_masked(key, value))}" for key, value in params.items())


def _masked(name: str, value: JsonValue) -> JsonValue:
    """The value without secrets, also where they lie deep."""
    if isinstance(value, dict):
        return {key: _masked(key, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(name, item) for item in value]
    return redacted_value(name, value) if isinstance(value, str) else value
