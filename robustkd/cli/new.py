"""``robustkd new``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from robustkd.cli.options import json_option, print_reserved

KINDS = ("defense", "attack", "check", "judge", "dataset", "model", "transform", "detector", "condenser", "analysis")


@click.command("new")
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), help="The new folder [default: robustkd-NAME].")
@json_option
def command(kind: str, name: str, out: Path | None, as_json: bool) -> None:
    """Write an installable package with a working plug-in to begin with: code, entry point, tests.

    NAME is the plug-in's name in campaign files: lower-case words joined by '-'.
    """
    from robustkd.plugin_kit.scaffold import write_package

    written = write_package(kind, name, out)
    if as_json:
        print_reserved(json.dumps([str(file) for file in written], indent=1))
        return
    for file in written:
        click.echo(f"wrote {file}")
    folder = written[0].parent
    here = "" if folder.is_absolute() else "./"  # without it pip takes the folder for a package's name
    click.echo(f"\nnext: pip install --editable {here}{folder}\n      robustkd test-plugin {name}")
