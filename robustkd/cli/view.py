"""``robustkd view``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("view")
@click.argument("runs", default="runs", metavar="[RUNS]", type=click.Path(path_type=Path))
@click.option("--port", default=8350, show_default=True, type=click.IntRange(0, 65535), help="0 takes any that is free.")
def command(runs: Path, port: int) -> None:
    """Show campaigns, samples and conversations as pages on this machine, until Ctrl-C.

    RUNS: a folder of campaigns that were run or are running, or the output folder of one. Nothing in it is run, trained or changed.
    The pages are for this machine alone: elsewhere, open them through `ssh -L 8350:127.0.0.1:8350 MACHINE`.
    """
    from robustkd.contracts import UsageError
    from robustkd.viewer.runs import Runs
    from robustkd.viewer.server import LOOPBACK, listening, serve
    from robustkd.viewer.site import Site

    if not runs.is_dir():
        raise UsageError(f"there is no folder {runs}", fix="name the folder that campaigns were run into, or run one")
    site = Site(Runs(runs))
    listener = listening(port)
    click.echo(f"http://{LOOPBACK}:{listener.getsockname()[1]}/   (Ctrl-C ends it)")
    serve(site, listener)
