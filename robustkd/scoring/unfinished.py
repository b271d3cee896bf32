"""Attacks that count for a robust accuracy and have no number: without them it could only be lower."""

from __future__ import annotations

from robustkd.scoring.results import CellResult, Results


def is_headline(results: Results, cell: CellResult) -> bool:
    """Whether the cell ran under the campaign's threat model."""
    threat = results.threat
    return (cell.norm, cell.eps, cell.goal, cell.where) == (threat.norm, threat.eps, threat.goal, threat.where)


def unfinished(results: Results) -> dict[str, str]:
    """Of each defense that lacks some, the attacks under the campaign's threat model that have no number, and on which seeds; in words."""
    lacking: dict[str, dict[str, list[int]]] = {}
    for cell in results.cells:
        if cell.robust_accuracy is None and is_headline(results, cell):
            lacking.setdefault(cell.defense, {}).setdefault(cell.attack, []).append(cell.seed)
    return {defense: f"no number of {_listed(attacks)}" for defense, attacks in lacking.items()}


def _listed(attacks: dict[str, list[int]]) -> str:
    """`pgd, cw (seed 0), margin (seeds 0, 1)`: attacks that lack the same seeds together."""
    alike: dict[tuple[int, ...], list[str]] = {}
    for attack, seeds in attacks.items():
        alike.setdefault(tuple(seeds), []).append(attack)
    return ", ".join(
        f"{', '.join(names)} ({'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))})"
        for seeds, names in alike.items()
    )
