"""``robustkd gate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustkd.cli.names import outputs
from robustkd.cli.options import allow_missing_option, json_option, out_option, print_reserved, tell

if TYPE_CHECKING:
    from robustkd.campaigns.comparison.gate import GateResult
    from robustkd.scoring.results import Results

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("gate")
@click.argument("results", shell_complete=outputs)
@out_option
@click.option("--baseline", type=str, help="A baseline file, or an earlier output: nothing may have fallen below it.")
@click.option(
    "--allowed-drop",
    type=click.FloatRange(0, 1),
    default=0.02,
    show_default=True,
    help="How far a share may fall below the baseline.",
)
@click.option(
    "--metric",
    "metrics",
    type=click.Choice(["robust_accuracy", "clean_accuracy"]),
    multiple=True,
    default=["robust_accuracy"],
    show_default=True,
    help="What is held against the baseline; may be given twice.",
)
@click.option("--write-baseline", type=_FILE, help="Write the results' numbers and samples into this file, to commit.")
@click.option("--junit", type=_FILE, help="Write JUnit XML.")
@click.option("--sarif", type=_FILE, help="Write SARIF 2.1.0, with each gate's line of the campaign file.")
@click.option("--markdown", type=_FILE, help="Append a Markdown summary (such as to $GITHUB_STEP_SUMMARY).")
@allow_missing_option
@json_option
def command(
    results: str,
    out: Path | None,
    baseline: str | None,
    allowed_drop: float,
    metrics: tuple[str, ...],
    write_baseline: Path | None,
    junit: Path | None,
    sarif: Path | None,
    markdown: Path | None,
    allow_missing: bool,
    as_json: bool,
) -> None:
    """Judge the gates of a campaign that was run, and whether it fell below a baseline.

    RESULTS: a campaign (file or preset), an output folder or its results.json.

    Exit codes: 0 no gate failed, 4 one failed, 5 none failed but one has nothing to judge (a number that is missing or not credible),
    or an attack has no result that a baseline to be written should hold.
    """
    from robustkd.campaigns.comparison import ci, gate, snapshot
    from robustkd.campaigns.comparison.sarif import sarif as to_sarif
    from robustkd.campaigns.store.durable import write_text
    from robustkd.contracts import UsageError

    found = snapshot.read(results, out)
    if found.results is None:
        raise UsageError(f"{results} is a baseline file, not results", fix="robustkd gate RESULTS --baseline FILE")
    gates = gate.judge_gates(found.gates, found.results)
    if baseline is not None:
        before = snapshot.read(baseline)
        gates += gate.judge_baseline(before, found, allowed_drop=allowed_drop, metrics=metrics)  # type: ignore[arg-type]
    if not gates and write_baseline is None:
        raise UsageError(
            f"{results} has no gates, and no baseline was given",
            fix="write 'gates:' in the campaign file, or give --baseline FILE (--write-baseline FILE makes one)",
        )
    if found.outdated:
        gates = gate.of_another_model(gates, found.outdated)
    if junit is not None:
        write_text(junit, ci.junit(found.campaign, gates, found.source, allow_missing=allow_missing))
    if sarif is not None:
        write_text(sarif, to_sarif(found.campaign, gates, found.source, allow_missing=allow_missing))
    if markdown is not None:
        with markdown.open("a", encoding="utf-8") as summary:
            summary.write(ci.markdown(found.campaign, gates))
    _print(gates, as_json=as_json)
    code = gate.exit_code(gates, allow_missing=allow_missing)
    if code == gate.FAILED:
        raise click.exceptions.Exit(code)
    if write_baseline is not None:
        write_text(write_baseline, json.dumps(snapshot.to_baseline(found), indent=1) + "\n")
        click.echo(f"baseline   {write_baseline}", err=as_json)
        lacks = _lacks_attacks(found.results) and not allow_missing
        code = gate.NOT_JUDGED if lacks else code
    if code:
        raise click.exceptions.Exit(code)


def _lacks_attacks(results: Results) -> bool:
    """Whether a baseline of the results lacks attacks; says which."""
    from robustkd.scoring.unfinished import unfinished

    found = unfinished(results)
    for defense, lacks in found.items():
        click.echo(f"nothing can be held against what the baseline lacks: {defense}: {lacks}", err=True)
    return bool(found)


def _print(gates: Sequence[GateResult], *, as_json: bool) -> None:
    """Print every gate: as one JSON list, or a sentence each."""
    if as_json:
        print_reserved(json.dumps([asdict(item) for item in gates], indent=1))
        return
    for item in gates:
        tell(item.sentence)
