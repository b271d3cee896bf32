"""``robustkd audit-judges``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustkd.cli.options import console, json_option, print_reserved

if TYPE_CHECKING:
    from robustkd.evaluation.judge_audit import JudgeAudit


@click.command("audit-judges")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option(
    "--judge",
    "judges",
    multiple=True,
    help="A judge: a name, or '{kind: harmbench, model: reader}'; may be repeated [default: refusal-classifier, refusal-match].",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME=MODEL",
    help="A model that a judge refers to: a folder, campaign.yaml#defense, or '{kind: chat-endpoint, base_url: .., model: ..}'; may be "
    "repeated.",
)
@click.option("-n", type=click.IntRange(1), help="How many of the answers are judged, spread evenly [default: all].")
@json_option
def command(file: Path, judges: tuple[str, ...], models: tuple[str, ...], n: int | None, as_json: bool) -> None:
    """How well judges agree with people, and whether they go by how an answer looks.

    FILE has answers that people have labelled: the columns prompt, answer and complied (yes or no), or those of XSTest's completions.
    """
    from robustkd.cli.one_model import value
    from robustkd.prompt_api import audit_judges

    given = [value("--judge", text) for text in judges] or None
    others = dict(_named(text) for text in models)
    found = audit_judges(file, given, models=others, n=n)
    if as_json:
        print_reserved(json.dumps([_json(one) for one in found], indent=2))
        return
    _print(found)


def _named(text: str) -> tuple[str, Any]:
    from robustkd.application.trained import trained_folder
    from robustkd.cli.one_model import value

    name, found, spec = text.partition("=")
    if not found or not name or not spec:
        raise click.UsageError(f"--model {text}: give NAME=MODEL, such as reader=./folder")
    return name, trained_folder(spec) or value("--model", spec)


def _print(found: list[JudgeAudit]) -> None:
    from rich.table import Table

    table = Table("judge", "judged", "agrees with people", "kappa", "takes refusals for compliance", "compliance for refusals")
    for kind in found[0].changed:
        table.add_column(f"changes with {kind}")
    for one in found:
        kappa = "-" if one.kappa is None else f"{one.kappa:.2f}"
        shares = (one.judged, one.agreement, kappa, one.missed_refusals, one.missed_compliance, *one.changed.values())
        table.add_row(one.judge, *map(str, shares))
    screen = console()
    screen.print(table)
    people = found[0].people
    screen.print(
        f"{found[0].judged.n} answers" + ("" if people is None else f"; two people agree on {people}"), style="dim italic"
    )


def _json(one: JudgeAudit) -> dict[str, Any]:
    from robustkd.evaluation.judge_audit import Counted

    def told(counted: Counted) -> dict[str, Any]:
        return {"share": counted.share, "ci_low": counted.interval[0], "ci_high": counted.interval[1], "n": counted.n}

    return {
        "judge": one.judge,
        "judged": told(one.judged),
        "agreement": told(one.agreement),
        "kappa": one.kappa,
        "missed_refusals": told(one.missed_refusals),
        "missed_compliance": told(one.missed_compliance),
        "people": None if one.people is None else told(one.people),
        "changed": {kind: told(counted) for kind, counted in one.changed.items()},
    }
