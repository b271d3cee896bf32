"""``robustkd reproduce``."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustkd.cli.names import outputs
from robustkd.cli.options import json_option, print_reserved, tell

if TYPE_CHECKING:
    from robustkd.campaigns.execution.reproduce import Difference, Number


@click.command("reproduce")
@click.argument("run", shell_complete=outputs)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="New folder [default: reproduced/<name of the campaign>]."
)
@click.option("--run", "again", is_flag=True, help="Run it, too, and compare the numbers. Exit code 1: some differ.")
@click.option(
    "--profile", type=click.Path(path_type=Path, dir_okay=False), help="Where and how to run it (as for robustkd run)."
)
@json_option
def command(run: str, out: Path | None, again: bool, profile: Path | None, as_json: bool) -> None:
    """Re-create a campaign from the record of a run, and say what differs here.

    RUN: an output folder, its name below `runs`, or the id of a run in MLflow (of MLFLOW_TRACKING_URI).
    """
    from robustkd.campaigns.comparison.snapshot import folder_named
    from robustkd.campaigns.execution import record, reproduce

    with tempfile.TemporaryDirectory() as scratch:
        source = folder_named(run)
        if source is None:
            from robustkd.tracking.fetch import fetch_record

            source = Path(scratch)
            fetch_record(run, source)
        folder = out or Path("reproduced") / record.read(source / record.RECORD).campaign
        execution, campaign = reproduce.recreate(source, folder)
    found = reproduce.differences(execution, campaign)
    numbers = _again(campaign, folder, profile, quiet=as_json) if again else []
    if as_json:
        told = {
            "campaign": str(campaign),
            "differences": [asdict(item) for item in found],
            "numbers": list(map(asdict, numbers)),
        }
        print_reserved(json.dumps(told, indent=1))
    else:
        _print(campaign, found, numbers)
    if any(number.recorded != number.here for number in numbers):
        raise click.exceptions.Exit(1)


def _again(campaign: Path, folder: Path, profile: Path | None, *, quiet: bool) -> list[Number]:
    from robustkd.application import session
    from robustkd.campaigns.execution import profile as profiles
    from robustkd.campaigns.execution import reproduce
    from robustkd.campaigns.file import spec
    from robustkd.cli.progress import follower, warn

    how = profiles.load(profile).overridden(track=False)
    followers = [] if quiet else [follower(sys.stderr)]
    results = session.run(spec.load(campaign), folder, how, observers=followers, warn=warn)
    return reproduce.numbers(folder / reproduce.RECORDED, results)


def _print(campaign: Path, found: list[Difference], numbers: list[Number]) -> None:
    click.echo(f"campaign   {campaign}")
    click.echo(f"{len(found)} differences" if found else "nothing differs here from where it was run")
    for item in found:
        tell(f"{item.what}: {item.recorded or 'not there'} -> {item.here or 'not here'}", "  ")
    if numbers:
        same = sum(number.recorded == number.here for number in numbers)
        click.echo(f"{same} of {len(numbers)} numbers came out the same")
    for number in numbers:
        if number.recorded != number.here:
            click.echo(f"  {number.what}: {_share(number.recorded)} -> {_share(number.here)}")


def _share(value: float | None) -> str:
    return "no number" if value is None else f"{value:.2%}"
