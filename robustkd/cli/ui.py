"""``robustkd ui``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from robustkd.cli.names import outputs
from robustkd.cli.options import out_option


@click.command("ui")
@click.argument("runs", default="", metavar="[RUNS]", shell_complete=outputs)
@out_option
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
def command(runs: str, out: Path | None, port: int) -> None:
    """Serve the MLflow dashboard of campaigns on this machine, until Ctrl-C.

    RUNS: a folder of campaigns, which share one dashboard, or one of them: a campaign (file or preset), its output folder or its name
    [default: the folder runs, else the preset quickstart]. The address is printed when the server answers.

    It answers on 127.0.0.1 alone, and asks for no password. To show it to others, let them use a tunnel (ssh -L 5000:127.0.0.1:5000
    MACHINE), or track to an MLflow server with logins, which MLFLOW_TRACKING_URI names.
    """
    from robustkd.contracts import UsageError
    from robustkd.tracking import announced, ui_command
    from robustkd.tracking.location import DATABASE, SHARED
    from robustkd.tracking.relocation import relocate
    from robustkd.viewer.server import listening

    folder = _folder(runs or (SHARED if Path(SHARED, DATABASE).is_file() else "quickstart"), out)
    relocate(folder)
    server = ui_command(folder, port)
    try:
        listening(port).close()
    except UsageError as error:
        raise UsageError(f"{error.message}: another server answers there", fix="choose another one with --port") from error
    health = f"http://127.0.0.1:{port}/health"
    subprocess.Popen([sys.executable, str(announced.__file__), health, server.url], stderr=subprocess.DEVNULL)
    sys.stdout.flush()
    # In the place of this process, which would else wait with all that reading the campaign has imported.
    os.execve(server.argv[0], server.argv, os.environ | server.env)


def _folder(runs: str, out: Path | None) -> Path:
    """The results folder, or folder of campaigns, that is meant."""
    from robustkd.application.campaign import campaign_named
    from robustkd.campaigns.comparison.snapshot import folder_named

    named = folder_named(runs)
    return out or (campaign_named(runs)[1] if named is None else named)
