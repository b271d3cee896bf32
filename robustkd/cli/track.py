"""``robustkd track``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from robustkd.cli.names import outputs
from robustkd.cli.options import json_option, out_option, print_reserved


@click.command("track")
@click.argument("campaign", shell_complete=outputs)
@out_option
@json_option
def command(campaign: str, out: Path | None, as_json: bool) -> None:
    """Write a campaign's stored results to MLflow; what is there already is not written twice."""
    from robustkd.application import session
    from robustkd.application.campaign import campaign_named

    loaded, folder = campaign_named(campaign, out)
    store = session.track(loaded, folder)
    if as_json:
        print_reserved(json.dumps({"campaign": loaded.name, "tracking_uri": store}))
    else:
        click.echo(store)
