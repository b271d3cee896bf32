"""``robustkd report``."""

from __future__ import annotations

from pathlib import Path

import click

from robustkd.cli.options import out_option, results_folder


@click.command("report")
@click.argument("campaign")
@out_option
def command(campaign: str, out: Path | None) -> None:
    """Write report.html, report.md and the figures of a campaign from its stored results."""
    from robustkd.campaigns import spec
    from robustkd.cli import session

    loaded = spec.load(campaign)
    folder = results_folder(loaded, out)
    files = session.report(loaded, folder)
    click.echo(files.html)
