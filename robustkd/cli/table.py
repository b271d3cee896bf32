"""The table at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from robustkd.cli.options import console
from robustkd.report.formatting import budget
from robustkd.report.page import cost
from robustkd.report.story import NO_VERDICT
from robustkd.report.summary import DefenseSummary, attack_names, is_headline, summary_rows
from robustkd.report.versus import undecided
from robustkd.report.wording import wording
from robustkd.scoring.results import Results

if TYPE_CHECKING:
    from robustkd.campaigns.gate import GateResult

MOST_PAIRS = 4
_COLOURS = {"credible": "green", "suspect": "yellow", "not credible": "red"}


def print_results(results: Results, gates: Sequence[GateResult], folder: Path, *, tracked: bool, shown: str) -> None:
    """Print the summary with verdicts, what failed, the gates, and where everything is."""
    seeds = sorted({row.seed for row in results.defenses})
    attacks = attack_names(results)
    said, others = wording(results), _other_threats(results)
    caption = f"{budget(results.threat['norm'], results.threat['eps'])}, {results.data['name']}, n = {results.data['n']}, "
    caption += f"{len(seeds)} seeds: means; [95 % intervals of all seeds]" if len(seeds) > 1 else "[95 % interval]"
    if said.clean_is:
        caption += f"\n{said.clean_short.lower()}: share of {results.n_clean} harmless requests that are complied with"
    if others:
        told = ", ".join(f"{attack}: {model}" for attack, model in others.items())
        caption += f"\n* not in the worst case, which is under the campaign's threat model: {told}"
    table = Table(
        title=results.campaign, caption=caption, title_justify="left", caption_justify="left", box=None, pad_edge=False
    )
    table.add_column("defense", no_wrap=True)
    for name in (said.clean_short.lower(), *attacks, "worst case"):
        table.add_column(f"{name}*" if name in others else name, justify="right", no_wrap=name == "worst case")
    for name in ("W-Robust", "NRR"):  # the mean and the harmonic mean of clean accuracy and worst case
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    rows = summary_rows(results)
    remedied = any(row.remedied is not None for row in rows)
    if remedied:
        table.add_column("with remedy", no_wrap=True)
    for row in rows:
        numbers = [_share(row.clean_accuracy), *(_share(row.per_attack.get(attack)) for attack in attacks)]
        verdict = Text(
            row.verdict or (NO_VERDICT if row.status == "done" else row.status), style=_COLOURS.get(row.verdict or "", "red")
        )
        both = (_share(row.w_robust), _share(row.nrr))
        table.add_row(row.defense, *numbers, _worst(row), *both, verdict, *([_remedied(row)] if remedied else []))
    console().print(table)
    _print_evidence(results)
    sentences = undecided(results)
    for sentence in sentences[:MOST_PAIRS]:
        click.echo(sentence)
    if len(sentences) > MOST_PAIRS:
        click.echo(f"{len(sentences) - MOST_PAIRS} more pairs are not told apart: the report names them.")
    total = cost(results, [row.defense for row in rows])
    if total.added and total.check_forwards:
        click.echo(f"the checks added {total.added:.1%} to the attacks' passes")
    lost = [(row.status, row.defense, row.seed, row.error) for row in results.defenses]
    lost += [(cell.status, f"{cell.defense} × {cell.attack}", cell.seed, cell.error) for cell in results.cells]
    for status, what, seed, error in lost:
        if error:
            click.echo(f"{status}: {what}, seed {seed}: {error}", err=True)
    for gate in gates:
        click.echo(gate.sentence)
    click.echo(f"\nreport     {folder / 'report.html'}\nnumbers    {folder / 'results.json'}")
    if tracked:
        click.echo(
            f"dashboard  robustkd ui {shown}" + ("" if folder == Path("runs") / results.campaign else f" --out {folder}")
        )


def _other_threats(results: Results) -> dict[str, str]:
    """Attacks that are not under the campaign's threat model, and what they are under."""
    return {cell.attack: budget(cell.norm, cell.eps) for cell in results.cells if not is_headline(results, cell)}


def _print_evidence(results: Results) -> None:
    """One line for each severe finding: why a number must not be believed."""
    said: set[tuple[str, str]] = set()
    for row in results.defenses:
        for finding in row.checks:
            if finding.fired and finding.severity == "severe" and (row.defense, finding.name) not in said:
                said.add((row.defense, finding.name))
                evidence = finding.evidence.get("explanation", "")
                click.echo(f"{row.defense}: {finding.name} (seed {row.seed}): {evidence}")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _remedied(row: DefenseSummary) -> str:
    steps = ", ".join(f"{name} {_share(left)}" for name, left in row.remedies.items())
    return f"{_share(row.remedied)} ({steps or 'none usable'})" if row.remedied is not None else ""


def _worst(row: DefenseSummary) -> str:
    if row.robust_accuracy is None or row.ci_low is None or row.ci_high is None:
        return "-"
    return f"{row.robust_accuracy:.1%} [{row.ci_low:.1%}, {row.ci_high:.1%}]"
