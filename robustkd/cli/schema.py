"""``robustkd schema``."""

from __future__ import annotations

import json

import click

from robustkd.cli.options import print_reserved, reserve_stdout


@click.command("schema")
def command() -> None:
    """Print the JSON Schema of the campaign file, with every installed plug-in and its parameters.

    Editors complete and check a campaign with it. With the YAML language server, put this line on top of the file:

    # yaml-language-server: $schema=robustkd.schema.json
    """
    from robustkd.campaigns.file.schema import campaign_schema

    reserve_stdout(click.get_current_context())
    print_reserved(json.dumps(campaign_schema(), indent=1))
