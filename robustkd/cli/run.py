"""``robustkd run``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustkd.cli.names import campaigns
from robustkd.cli.options import (
    allow_missing_option,
    batch_size_option,
    json_option,
    out_option,
    precision_option,
    print_reserved,
    profile_option,
)
from robustkd.contracts.errors import StoreError

if TYPE_CHECKING:
    from robustkd.campaigns.comparison.gate import GateResult
    from robustkd.scoring.results import Results


@click.command("run")
@click.argument("campaign", shell_complete=campaigns)
@out_option
@profile_option
@click.option("--workers", type=click.IntRange(0), help="Child processes [default: one a core; one a GPU]; 0: none.")
@click.option(
    "--device", help="cpu, cuda, cuda:1, mps, xpu, .., several as cuda:0,cuda:1 [default: an accelerator where there is one]."
)
@precision_option
@batch_size_option
@click.option("--max-hours", type=click.FloatRange(0, min_open=True), help="Stop after so long; running again goes on.")
@click.option("--keep-perturbations", metavar="none|MIB", help="Perturbed inputs that an attack cell keeps [default: 64].")
@click.option(
    "--redo",
    multiple=True,
    metavar="NAME",
    help="Do a defense, an attack or an analysis again, and what stands on it, though it is finished; may be given several times.",
)
@click.option("--no-track", is_flag=True, help="Do not write to MLflow.")
@allow_missing_option
@click.option("--quiet", "-q", is_flag=True, help="Only the table.")
@json_option
def command(
    campaign: str,
    out: Path | None,
    profile: Path | None,
    workers: int | None,
    device: str | None,
    precision: Any,
    batch_size: int | None,
    max_hours: float | None,
    keep_perturbations: str | None,
    redo: tuple[str, ...],
    no_track: bool,
    allow_missing: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run a campaign file, or a preset by its name.

    What is finished already is not done again: after an interruption, or a change to the file, only the rest is run. A network that
    code of your own builds is built anew in each run, and attacked again where it came out different.

    Exit codes: 0 done, 3 incomplete (cells failed), 4 complete but a gate failed, 5 no gate failed but one has nothing to judge.
    """
    from robustkd.application import session
    from robustkd.application.campaign import campaign_named
    from robustkd.campaigns.comparison.gate import exit_code, judge_gates
    from robustkd.campaigns.execution import profile as profiles
    from robustkd.cli.progress import LastResults, follower, warn
    from robustkd.cli.table import print_results
    from robustkd.tracking.location import served_at

    loaded, folder = campaign_named(campaign, out)
    how = profiles.load(profile).overridden(
        workers=workers,
        device=device,
        precision=precision,
        batch_size=batch_size,
        max_hours=max_hours,
        keep_perturbations=keep_perturbations,
        track=False if no_track else None,
    )
    followers = [] if quiet or as_json else [follower(sys.stderr)]

    def shown(results: Results) -> list[GateResult]:
        gates = judge_gates(loaded.gates, results)
        if as_json:
            print_reserved(results.to_json())
        else:
            server = served_at(how.tracking.uri)
            print_results(results, gates, folder, tracked=how.tracking.enabled, shown=campaign, server=server)
        return gates

    last = LastResults()
    try:
        results = session.run(loaded, folder, how, observers=[*followers, last], warn=warn, redo=redo)
    except StoreError:
        if last.results is not None:  # all is done; the record or the report could not be written
            shown(last.results)
        raise
    gates = shown(results)
    if results.incomplete:
        raise click.exceptions.Exit(3)
    if code := exit_code(gates, allow_missing=allow_missing):
        raise click.exceptions.Exit(code)
