"""``robustkd doctor``."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from robustkd.cli.options import json_option, print_reserved, tell, whole_words


@click.command("doctor")
@click.option("--fix", is_flag=True, help="Install what is missing and repair what is broken, then check again.")
@json_option
def command(fix: bool, as_json: bool) -> None:
    """Check that torch, MLflow, torchattacks, foolbox and robustbench are usable together, and that no plug-in is missing."""
    from robustkd.integrations import doctor

    findings = doctor.repair(say=lambda text: click.echo(text, err=True)) if fix else doctor.examine()
    if as_json:
        print_reserved(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            mark = click.style("ok   ", fg="green") if finding.ok else click.style("wrong", fg="red")
            click.echo(mark + whole_words(f"{finding.name}: {finding.detail}", " " * 6).removeprefix(" " * 5))
            if not finding.ok and finding.fix:
                tell(f"fix: {finding.fix}", "      ")
    if not all(finding.ok for finding in findings):
        raise click.exceptions.Exit(1)
