"""``robustkd track``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from robustkd.cli.names import campaigns
from robustkd.cli.options import json_option, out_option, print_reserved, results_folder


@click.command("track")
@click.argument("campaign", shell_complete=campaigns)
@out_option
@json_option
def command(campaign: str, out: Path | None, as_json: bool) -> None:
    """Write a campaign's stored results to MLflow; what is there already is not written twice."""
    from robustkd.application import session
    from robustkd.campaigns.file import spec

    loaded = spec.load(campaign)
    store = session.track(loaded, results_folder(loaded, out))
    if as_json:
        print_reserved(json.dumps({"campaign": loaded.name, "tracking_uri": store}))
    else:
        click.echo(store)
