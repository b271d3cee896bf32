"""``robustkd ui``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from robustkd.cli.names import campaigns
from robustkd.cli.options import out_option, results_folder


@click.command("ui")
@click.argument("campaign", default="quickstart", shell_complete=campaigns)
@out_option
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
def command(campaign: str, out: Path | None, port: int) -> None:
    """Serve the MLflow dashboard of a campaign on this machine, until Ctrl-C.

    It answers on 127.0.0.1 alone, and asks for no password. To show it to others, let them use a tunnel (ssh -L 5000:127.0.0.1:5000
    MACHINE), or track to an MLflow server with logins, which MLFLOW_TRACKING_URI names.
    """
    from robustkd.campaigns.file import spec
    from robustkd.tracking import ui_command
    from robustkd.tracking.relocation import relocate

    folder = results_folder(spec.load(campaign), out)
    relocate(folder)
    server = ui_command(folder, port)
    click.echo(f"{server.url}   (Ctrl-C ends it)")
    sys.stdout.flush()
    # In the place of this process, which would else wait with all that reading the campaign has imported.
    os.execve(server.argv[0], server.argv, os.environ | server.env)
