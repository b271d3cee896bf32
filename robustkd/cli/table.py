"""The table at the end of a run."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.text import Text

from robustkd.cli.columns import Column, parts, print_parts
from robustkd.cli.options import console, tell
from robustkd.reporting.detection import detection_rows, detection_terms
from robustkd.reporting.page import cost
from robustkd.reporting.pairwise import undecided
from robustkd.reporting.presentation import terms_of
from robustkd.reporting.summary import DefenseSummary, attack_names, summary_rows
from robustkd.reporting.verdict_text import NO_VERDICT, which_hold
from robustkd.scoring.holds import Holds
from robustkd.scoring.results import Results
from robustkd.scoring.unfinished import is_headline
from robustkd.scoring.verdict import RULES, unexamined
from robustkd.tracking.dashboard import page_url

if TYPE_CHECKING:
    from robustkd.campaigns.comparison.gate import GateResult

MOST_PAIRS = 4
MOST_NAMES = 6
"""Defenses or attacks that one reason is told of by name."""
_COLOURS = {"credible": "", "suspect": "yellow", "not credible": "red"}
_HOLDS: dict[Holds | None, str] = {"yes": "green", "in part": "yellow", "no": "red", None: "dim"}


def print_results(
    results: Results, gates: Sequence[GateResult], folder: Path, *, tracked: bool, shown: str, server: str | None = None
) -> None:
    """Print the summary with verdicts, what failed, the gates, and where everything is.

    Args:
        tracked: whether MLflow has it, too.
        shown: the campaign, as commands take it.
        server: the MLflow server that has it; None where it is in the folder's own store.
    """
    rows, screen = summary_rows(results), console()
    _print_summary(results, rows, screen)
    if rows:
        tell(f"does it hold? {which_hold(results, rows)}")
    _print_detection(results, screen)
    _print_evidence(results)
    _print_undecided(results)
    _print_cost_of_checks(results, rows)
    for one in results.served:
        tell(f"served: {one.sentence}")
    _print_failures(results)
    for gate in gates:
        tell(gate.sentence)
    click.echo()
    for what, file in (("report ", folder / "report.html"), ("numbers", folder / "results.json")):
        if file.exists():
            click.echo(f"{what}    {file}")
    if tracked and server is not None:
        click.echo(f"dashboard  {page_url(folder, server)}")
    elif tracked:
        elsewhere = [] if folder == Path("runs") / results.campaign else ["--out", str(folder)]
        click.echo(f"dashboard  {shlex.join(['robustkd', 'ui', shown, *elsewhere])}")


def _print_summary(results: Results, rows: Sequence[DefenseSummary], screen: Console) -> None:
    """The table of defenses and attacks; where it does not fit, the attacks behind a remedy are told below it."""
    others = _other_threats(results)
    screen.print(results.campaign, style="italic", soft_wrap=True)
    whole = _columns(results, rows, others)
    narrow = len(parts(whole, screen)) > 1
    print_parts(_columns(results, rows, others, steps=False) if narrow else whole, screen)
    screen.print(_caption(results, others), style="dim italic")
    for row in rows if narrow else ():
        if row.remedies:
            tell(f"{row.defense} with remedy: {_steps(row)}")


def _columns(
    results: Results, rows: Sequence[DefenseSummary], others: Mapping[str, str], *, steps: bool = True
) -> list[Column]:
    """The summary's columns; an attack of ``others`` is marked by an asterisk, which the caption explains.

    Args:
        steps: whether the remedies' numbers have the attacks behind them, which takes a wide terminal.
    """
    columns = [
        Column("defense", [row.defense for row in rows], "left"),
        Column(terms_of(results).clean_short.lower(), [_share(row.clean_accuracy) for row in rows]),
    ]
    for attack in attack_names(results):
        name = f"{attack}*" if attack in others else attack
        columns.append(Column(name, [_share(row.per_attack.get(attack)) for row in rows], detail=True))
    columns.append(Column("worst case", [_worst(row) for row in rows]))
    if any(row.unjudged for row in rows):
        columns.append(Column("not judged", [_share(row.unjudged) for row in rows]))
    if any(row.brackets for row in rows):
        columns.append(Column("certified to attacked", [_bracket(row) for row in rows]))
    # The mean and the harmonic mean of clean accuracy and worst case.
    columns.append(Column("W-Robust", [_share(row.w_robust) for row in rows]))
    columns.append(Column("NRR", [_share(row.nrr) for row in rows]))
    columns.append(Column("verdict", [_verdict(row) for row in rows], "left"))
    if any(row.remedied is not None for row in rows):
        columns.append(Column("with remedy", [_remedied(row, steps) for row in rows], "left", wraps=True))
    return columns


def _caption(results: Results, others: Mapping[str, str]) -> str:
    """What the numbers are of: threat model, data, seeds, and what the asterisks mean."""
    n_seeds = len({row.seed for row in results.defenses})
    caption = f"{results.threat_model.plain}, {results.data.name}, n = {results.data.n}, "
    caption += f"{n_seeds} seeds: means; [95 % intervals of all seeds]" if n_seeds > 1 else "[95 % interval]"
    terms = terms_of(results)
    if terms.clean_is:
        known = f"share of {results.n_clean} harmless requests that are complied with"
        clean = known if results.n_clean else "not known, the data have no harmless requests"
        caption += f"\n{terms.clean_short.lower()}: {clean}"
    caption += "".join(f"\ndata: {note}" for note in results.data.notes)
    caption += "".join(f"\n{note}" for note in results.judged_on_draws)
    if others:
        listed = ", ".join(f"{attack}: {model}" for attack, model in others.items())
        caption += f"\n* not in the worst case, which is under the campaign's threat model: {listed}"
    return caption


def _verdict(row: DefenseSummary) -> Text:
    told = row.verdict or (NO_VERDICT if row.status == "done" else row.status)
    return Text(told, style=_COLOURS.get(row.verdict or "", "red"))


def _other_threats(results: Results) -> dict[str, str]:
    """Attacks that are not under the campaign's threat model, and what they are under."""
    return {cell.attack: cell.threat_model.plain for cell in results.cells if not is_headline(results, cell)}


def _print_evidence(results: Results) -> None:
    """One line for each severe finding: why a number must not be believed; and one for the checks that could not be run."""
    said: set[tuple[str, str]] = set()
    for row in results.defenses:
        for finding in row.checks:
            if finding.fired and finding.severity == "severe" and (row.defense, finding.name) not in said:
                said.add((row.defense, finding.name))
                tell(f"{row.defense}: {finding.name} (seed {row.seed}): {finding.explanation}")
        if unrun := [finding for finding in row.checks if finding.outcome == "not run"]:
            names = ", ".join(finding.name for finding in unrun)
            again = "; running the campaign again tries again" if any(finding.again for finding in unrun) else ""
            why = unrun[0].reason.splitlines()[:1]
            tell(f"{row.defense}: not run (seed {row.seed}): {names}: {''.join(why)}{again}")
        elif row.verdict == "suspect" and row.verdict_rules == RULES and (missing := unexamined(row.checks)):
            tell(f"{row.defense}: not examined (seed {row.seed}): {missing}")
    if any(row.verdict and row.verdict_rules != RULES for row in results.defenses):
        tell(f"some verdicts are by former rules; 'robustkd report --rejudge' judges by the present ones ({RULES})")


def _print_detection(results: Results, screen: Console) -> None:
    """What the detectors made of each attack, where a defense has one."""
    if rows := detection_rows(results):
        columns = [
            Column("defense", [row.defense for row in rows], "left"),
            Column("attack", [row.attack for row in rows], "left"),
            *(
                Column(name, [row.values[place] for row in rows], detail=True)
                for place, name in enumerate(detection_terms(results).head)
            ),
        ]
        screen.print("")
        print_parts(columns, screen, names=2)


def _print_undecided(results: Results) -> None:
    """The first pairs of defenses that the samples or the seeds do not tell apart, and how many more there are."""
    sentences = undecided(results)
    for sentence in sentences[:MOST_PAIRS]:
        tell(sentence)
    if len(sentences) > MOST_PAIRS:
        tell(f"{len(sentences) - MOST_PAIRS} more pairs are not told apart: the report names them.")


def _print_cost_of_checks(results: Results, rows: Sequence[DefenseSummary]) -> None:
    """The passes of the checks as a share of those of the attacks."""
    total = cost(results, [row.defense for row in rows])
    if total.added and total.check_forwards:
        tell(f"the checks added {total.added:.1%} to the attacks' passes")


def _print_failures(results: Results) -> None:
    """Each reason why something has no number, once, with what it stopped: defenses, then attacks."""
    lost = [(row.status, f"{row.defense}, seed {row.seed}", row.error) for row in results.defenses]
    lost += [(cell.status, f"{cell.defense} × {cell.attack}, seed {cell.seed}", cell.error) for cell in results.cells]
    stopped: dict[tuple[str, str], list[str]] = {}
    for status, what, error in lost:
        if error:
            stopped.setdefault((status, error), []).append(what)
    for (outcome, reason), names in stopped.items():
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        tell(f"{outcome}: {'; '.join(names[:MOST_NAMES])}{more}: {reason}", stream=sys.stderr)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _remedied(row: DefenseSummary, steps: bool) -> str:
    if row.remedied is None:
        return ""
    told = f" ({_steps(row) or 'none usable'})" if steps or not row.remedies else ""
    return f"{_share(row.remedied)}{told}"


def _steps(row: DefenseSummary) -> str:
    """The attacks that lowered the number, each with what it left."""
    return ", ".join(f"{name} {_share(left)}" for name, left in row.remedies.items())


def _worst(row: DefenseSummary) -> str | Text:
    if row.robust_accuracy is None or row.ci_low is None or row.ci_high is None:
        return "-"
    return Text(f"{row.robust_accuracy:.1%} [{row.ci_low:.1%}, {row.ci_high:.1%}]", style=_HOLDS[row.holds])


def _bracket(row: DefenseSummary) -> str:
    if row.exact:
        return f"{_share(row.certified)} exact"
    return f"{_share(row.certified)} to {_share(row.attacked)}" if row.brackets else "-"
