"""``robustkd report``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from robustkd.cli.names import outputs
from robustkd.cli.options import json_option, out_option, print_reserved, reserve_stdout


@click.command("report")
@click.argument("campaign", shell_complete=outputs)
@out_option
@click.option(
    "--to",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the report is written [default: the results folder, which may be one that cannot be written to].",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(("html", "markdown", "latex")),
    default="html",
    show_default=True,
    help="html writes the files; markdown and latex print the report, or its tables (booktabs).",
)
@click.option(
    "--rejudge",
    is_flag=True,
    help="Judge by the present rules what former ones judged, as far as that needs no new attack, and say what became of each verdict.",
)
@json_option
def command(campaign: str, out: Path | None, to: Path | None, form: str, rejudge: bool, as_json: bool) -> None:
    """Write report.html, report.md, report.tex and the figures of a campaign from its stored results."""
    from robustkd.application import session
    from robustkd.application.campaign import campaign_named

    if as_json and form != "html":
        raise click.UsageError(f"--json tells the files that are written; {form} is printed")
    if to and form != "html":
        raise click.UsageError(f"--to says where files are written; {form} is printed")
    if form != "html":
        reserve_stdout(click.get_current_context())
    loaded, folder = campaign_named(campaign, out)
    if rejudge:
        for line in session.rejudged(loaded, folder) or ["every verdict is by the present rules already"]:
            click.echo(line, err=True)
    if as_json:
        print_reserved(json.dumps([str(path) for path in session.report(loaded, folder, to=to, rejudge=rejudge).all], indent=1))
    elif form == "html":
        click.echo(session.report(loaded, folder, to=to, rejudge=rejudge).html)
    else:
        print_reserved(session.printed(loaded, folder, form, rejudge=rejudge), nl=False)
