"""``robustkd view``."""

from __future__ import annotations

from pathlib import Path

import click

from robustkd.cli.names import outputs


@click.command("view")
@click.argument("runs", default="runs", metavar="[RUNS]", shell_complete=outputs)
@click.option("--port", default=8350, show_default=True, type=click.IntRange(0, 65535), help="0 takes any that is free.")
@click.option(
    "--export",
    "to",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write the same pages as files into a new folder, and serve nothing.",
)
@click.option(
    "--with-harmful",
    is_flag=True,
    help="Take requests that models should refuse, their answers and pictures into the export; they are left out else.",
)
@click.option(
    "--samples",
    type=click.IntRange(0),
    help="Samples of each defense in an export, each a page with its pictures; 0 for all [default: 20].",
)
def command(runs: str, port: int, to: Path | None, with_harmful: bool, samples: int | None) -> None:
    """Show campaigns, samples and conversations as pages on this machine, until Ctrl-C.

    RUNS: a folder of campaigns that were run or are running, the output folder of one, its name below `runs`, or a campaign (file
    or preset). Nothing in it is run, trained or changed. The pages are for this machine alone: elsewhere, open them through
    `ssh -L 8350:127.0.0.1:8350 MACHINE`.
    """
    from robustkd.application.campaign import folder_of
    from robustkd.viewer.runs import Runs

    if to is None and (with_harmful or samples is not None):
        raise click.UsageError("--with-harmful and --samples are for --export")
    folder = folder_of(runs)
    if to is not None:
        from robustkd.viewer.export import SAMPLES, export

        most = SAMPLES if samples is None else samples or None
        count = export(Runs(folder), to, with_harmful=with_harmful, samples=most)
        click.echo(f"{to / 'index.html'}   ({count} files)")
        return
    from robustkd.viewer.server import LOOPBACK, listening, serve
    from robustkd.viewer.site import Site

    site = Site(Runs(folder))
    listener = listening(port)
    click.echo(f"http://{LOOPBACK}:{listener.getsockname()[1]}/   (Ctrl-C ends it)")
    serve(site, listener)
