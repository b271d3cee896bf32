"""``robustkd audit``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from robustkd.cli.one_model import OneModel, allowed, given, images, loaded_model, one_model_options, value
from robustkd.cli.options import batch_size_option, console, json_option, print_reserved, whole_words

if TYPE_CHECKING:
    from robustkd.api import EvaluationReport, PromptEvaluationReport


@click.command("audit")
@click.argument("model")
@one_model_options
@click.option(
    "--attack",
    "attacks",
    multiple=True,
    help="The attack that is examined: a name, or '{kind: pgd, steps: 40}'; may be repeated [default: fgsm, pgd, pgd on the margin].",
)
@click.option("--level", default="standard", show_default=True, type=click.Choice(["standard", "thorough"]))
@click.option("--samples", type=click.IntRange(1), help="Samples that a check looks at, at most [default: its own].")
@batch_size_option
@json_option
def command(
    model: str,
    options: OneModel,
    attacks: tuple[str, ...],
    level: Any,
    samples: int | None,
    batch_size: int | None,
    as_json: bool,
) -> None:
    """Can a robust accuracy of MODEL be believed? Runs every check on it, without a campaign.

    MODEL is code (file.py:function, package.module:function), a registered model, a TorchScript, torch.export or ONNX file, or a
    folder: of a saved target, or of an image classifier of transformers.

    Exit codes: 0 credible or suspect, 1 failure, 2 usage, 3 an attack gave no number (invalid or failed), 4 not credible.
    """
    from robustkd import api
    from robustkd.contracts.devices import device_named

    there = device_named(options.device)
    splits = images(options)
    target = loaded_model(model, options, splits).to(there)
    x, how = given(options, splits)
    report = api.audit(
        target,
        x,
        splits.test.labels,
        **allowed(options, splits),
        attacks=[value("--attack", attack) for attack in attacks] or api.DEFAULT_ATTACKS,
        level=level,
        samples=samples,
        seed=options.seed,
        batch_size=batch_size or api.BATCH_SIZE,
        **how,
    )
    if as_json:
        print_reserved(report.to_json())
    else:
        _print(report)
    if report.verdict == "not credible":
        raise click.exceptions.Exit(4)
    if report.failed:
        raise click.exceptions.Exit(3)


WIDE = 120
"""Columns from which on the evidence has room beside the rest."""


def _print(report: EvaluationReport | PromptEvaluationReport) -> None:
    from rich.table import Table
    from rich.text import Text

    from robustkd.reporting.verdict_text import evidence_rows

    colours = {"severe": "red", "warning": "yellow"}
    if console().width < WIDE:
        _print_narrow(report, colours)
        return
    table = Table(box=None, pad_edge=False)
    for name in ("check", "severity", "outcome"):
        table.add_column(name, no_wrap=True)
    table.add_column("passes a sample of the audit", justify="right")
    table.add_column("evidence")
    order = ("fired", "not run", "quiet", "does not apply")
    for finding in sorted(report.findings, key=lambda item: order.index(item.outcome)):
        passes = (finding.forward_passes + finding.backward_passes) / len(report.standing)
        told = finding.explanation if finding.fired else finding.reason
        if not told:  # an explanation tells of a symptom: where there is none, the numbers speak
            told = ", ".join(f"{name} {number}" for name, number in list(evidence_rows(finding).items())[:4])
        style = colours.get(finding.severity, "") if finding.fired else ""
        table.add_row(finding.name, finding.severity, Text(finding.outcome, style=style), f"{passes:.1f}", Text(told))
        if finding.fired and finding.fix:
            table.add_row("", "", "", "", Text(f"fix: {finding.fix}", style="dim"))
    console().print(table)
    click.echo("")
    click.echo(str(report))


def _print_narrow(report: EvaluationReport | PromptEvaluationReport, colours: Mapping[str, str]) -> None:
    """What speaks against the number in full, the other checks by name, the verdict last."""
    from robustkd.reporting.verdict_text import evidence_rows

    names: dict[str, list[str]] = {}
    for finding in report.findings:
        if finding.outcome not in ("fired", "not run"):
            names.setdefault(finding.outcome, []).append(finding.name)
            continue
        click.secho(
            f"{finding.name} ({finding.severity}): {finding.outcome}",
            fg=colours.get(finding.severity) if finding.fired else None,
        )
        told = finding.explanation if finding.fired else finding.reason
        told = told or ", ".join(f"{name} {number}" for name, number in list(evidence_rows(finding).items())[:4])
        if told:
            click.echo(whole_words(told, "  "))
        if finding.fired and finding.fix:
            click.echo(whole_words(f"fix: {finding.fix}", "  ", "    "))
    for outcome, checks in names.items():
        click.echo(whole_words(f"{outcome}: {', '.join(checks)}", hanging="  "))
    click.echo("")
    click.echo(whole_words(str(report)))
