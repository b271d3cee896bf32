"""``robustkd promote``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from robustkd.cli.names import outputs
from robustkd.cli.options import out_option, tell


@click.command("promote")
@click.argument("run", shell_complete=outputs)
@click.argument("defense")
@click.option("--seed", type=click.IntRange(0), help="Which training [default: the campaign's first].")
@out_option
@click.option("--name", help="Of the registered model [default: <campaign>-<defense>].")
@click.option("--alias", default="champion", show_default=True, help="Alias to point at it.")
@click.option("--force", is_flag=True, help="Also when something speaks against it; the version's tags then say what.")
def command(run: str, defense: str, seed: int | None, out: Path | None, name: str | None, alias: str, force: bool) -> None:
    """Register a trained defense in MLflow's model registry, with its robustness card.

    RUN: a campaign (file or preset) that was run and tracked, or its output folder. It must have passed its gates, and its
    robust accuracy must be credible. Where no gate is about the defense, a terminal is asked, and anything else is refused.
    """
    from robustkd.campaigns.comparison import gate, snapshot
    from robustkd.contracts import UsageError
    from robustkd.tracking import promote

    found = snapshot.read(run, out)
    if found.results is None or found.folder is None:
        raise UsageError(f"{run} is a baseline file, not results", fix="name a campaign or its output folder")
    gates = [item for item in gate.judge_gates(found.gates, found.results) if item.defense == defense]
    sentences = [item.sentence for item in gates]
    against = gate.objections(gates, defense) + ([found.outdated] if found.outdated else [])
    if not gates and not (
        sys.stdin.isatty() and click.confirm(f"No gate says what '{defense}' must reach. Promote it?", abort=True)
    ):
        against.append("no gate of the campaign says what it must reach")
    tell(
        promote(
            found.folder,
            found.results,
            defense,
            seed,
            objections=against,
            gates=sentences,
            name=name,
            alias=alias,
            force=force,
        )
    )
