"""``robustkd init``."""

from __future__ import annotations

import json
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from robustkd.cli.options import json_option, print_reserved, whole_words


def _purposes(ctx: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    from robustkd.campaigns.file import starters

    return [CompletionItem(name, help=text) for name, text in starters.purposes().items() if name.startswith(begun)]


@click.command("init")
@click.argument("purpose", required=False, shell_complete=_purposes)
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@json_option
def command(purpose: str | None, file: Path | None, as_json: bool) -> None:
    """Write a commented campaign for a purpose into FILE [default: PURPOSE.yaml]; without a purpose, list them."""
    from robustkd.campaigns.file import starters

    if purpose is None:
        known = starters.purposes()
        if as_json:
            print_reserved(json.dumps(known, indent=1))
            return
        for name, text in known.items():
            click.echo(whole_words(f"{name:<18} {text}", hanging=" " * 19))
        return
    written = starters.write(purpose, file)
    if as_json:
        print_reserved(json.dumps([str(path) for path in written], indent=1))
        return
    for path in written:
        click.echo(f"wrote {path}")
    click.echo(f"\nnext: robustkd plan {written[0]}\n      robustkd run {written[0]}")
