"""``robustkd export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustkd.cli.names import outputs

if TYPE_CHECKING:
    from robustkd.campaigns.comparison.snapshot import Snapshot

FORMATS = ("adversarial",)


@click.command("export")
@click.argument("results", shell_complete=outputs)
@click.option("--format", "form", type=click.Choice(FORMATS), default="adversarial", show_default=True)
@click.option(
    "--out", required=True, metavar="PATH", help="What is written; of adversarial inputs adv.npz, or folder/ of PNG images."
)
@click.option("--defense", help="Which defense [default: the only one].")
@click.option("--attack", help="Of adversarial inputs, which attack [default: the only one].")
@click.option("--seed", type=click.IntRange(0), help="Which training [default: the first].")
@click.option("--device", default="auto", show_default=True, help="Where the model is asked again.")
def command(results: str, form: str, out: str, defense: str | None, attack: str | None, seed: int | None, device: str) -> None:
    """Write a result of a campaign that was run, in a form that others read.

    RESULTS: a campaign (file or preset), an output folder or its results.json. A table of every sample: robustkd store export.
    """
    from robustkd.campaigns.comparison import snapshot
    from robustkd.contracts import UsageError

    found = snapshot.read(results)
    if found.results is None or found.folder is None:
        raise UsageError(f"{results} is a baseline file, not results", fix="name a campaign or its output folder")
    defense = _only("defense", defense, found.defenses)
    click.echo(_adversarial(found, found.folder, out, defense, attack, seed, device))


def _adversarial(
    found: Snapshot, folder: Path, out: str, defense: str, attack: str | None, seed: int | None, device: str
) -> str:
    from robustkd.application.adversarial import save_adversarial
    from robustkd.application.campaign import run_before

    attack = _only("attack", attack, list(found.settings))
    return save_adversarial(run_before(folder), folder, defense, attack, seed, out, device)


def _only(what: str, name: str | None, known: list[str]) -> str:
    """The name that was given, or the only one that there is."""
    from robustkd.contracts import UsageError, suggestion

    if name is None and len(known) == 1:
        return known[0]
    if name is None:
        raise UsageError(f"the results have {len(known)} {what}s", fix=f"--{what}, one of: {', '.join(known)}")
    if name not in known:
        raise UsageError(f"there is no {what} '{name}'", fix=suggestion(name, known) or f"one of: {', '.join(known)}")
    return name
