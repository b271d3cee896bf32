"""``robustkd plan``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustkd.cli.names import campaigns
from robustkd.cli.options import json_option, out_option, print_reserved, profile_option, tell

if TYPE_CHECKING:
    from robustkd.campaigns.plan.estimate import Cost


@click.command("plan")
@click.argument("campaign", shell_complete=campaigns)
@out_option
@profile_option
@json_option
def command(campaign: str, out: Path | None, profile: Path | None, as_json: bool) -> None:
    """Show the cells of a campaign, which of them are finished, what the rest will take, and the pairs that are left out.

    The estimate is made of the times that like cells in the results folder took; it says which those are, and what it does not know.
    """
    from robustkd.application.campaign import campaign_named
    from robustkd.campaigns.execution import profile as profiles
    from robustkd.campaigns.plan import plan
    from robustkd.campaigns.plan.changes import reasons
    from robustkd.campaigns.plan.estimate import cost, estimates
    from robustkd.campaigns.plan.finished import finished_cells, rebuilt_cells
    from robustkd.campaigns.plan.served import served_requests
    from robustkd.campaigns.results.served import served
    from robustkd.campaigns.store.store import Store
    from robustkd.evaluation.modality import evaluation_of

    loaded, folder = campaign_named(campaign, out)
    asks_for = profiles.load(profile).make_engine().asks_for
    laid_out = plan.build(loaded)
    store = Store(folder)
    done = finished_cells(laid_out, store)
    done -= rebuilt_cells(laid_out)
    again = reasons(laid_out, store, done)
    expected = estimates(laid_out, store, done)
    total = cost(expected, store)
    asked, kept = served_requests(laid_out, done), served(store.answers)
    if as_json:
        cells = [
            {"attack": None, "analysis": None}
            | cell.to_json()
            | {"needs": cell.needs, "finished": cell.id in done}
            | {"estimate": asdict(expected[cell.id]) if cell.id in expected else None}
            for cell in laid_out.cells
        ]
        print_reserved(
            json.dumps(
                {
                    "plan": laid_out.id,
                    "cells": cells,
                    "cost": asdict(total),
                    "served": {"asks": [asdict(one) for one in asked], "kept": [asdict(one) for one in kept]},
                    "again": again,
                    "asks_for": asks_for,
                    "skipped": [asdict(item) for item in laid_out.skipped],
                    "notes": laid_out.data.notes,
                },
                indent=1,
            )
        )
        return
    data = laid_out.data
    tested = evaluation_of(data.modality).size(data)
    tell(f"{loaded.name}: {loaded.threat}, {loaded.data.name} ({tested}), seeds {_list(loaded.seeds)}")
    for note in data.notes:
        tell(f"data: {note}", "  ")
    for kind, one, several in (
        ("train", "training", "trainings"),
        ("attack", "attack", "attacks"),
        ("checks", "set of checks", "sets of checks"),
        ("analysis", "analysis", "analyses"),
    ):
        ids = {cell.id for cell in laid_out.cells if cell.kind == kind}
        if ids or kind != "analysis":
            click.echo(f"  {len(ids):>5} {one if len(ids) == 1 else several:<15} {len(done & ids)} finished")
    for name, use in loaded.defenses.items():
        after = f" after {_list(use.references)}" if use.references else ""
        attacked = dict.fromkeys(cell.attack for cell in laid_out.of("attack") if cell.defense == name)
        tell(f"{name} ({use.kind}){after}: {_list(attacked)}", "  ")
    if expected:
        _print_cost(total)
    if asks_for:
        tell(f"asks for {asks_for}", "  ")
    told = [*(one.sentence for one in asked), *(one.sentence for one in kept)]
    for sentence in [*(f"served: {one}" for one in told), *loaded.may_change]:
        tell(sentence, "  ")
    for reason in again:
        tell(f"again: {reason}", "  ")
    for item in laid_out.skipped:
        tell(f"skipped {item.defense} × {item.attack}: {item.reason}", "  ")


def _print_cost(total: Cost) -> None:
    count = sum(total.cells.values())
    unknown = total.cells.get("unknown", 0)
    if unknown < count:
        bases = ", ".join(f"{cells} by {basis}" for basis, cells in total.cells.items() if basis != "unknown")
        passes = f", {total.passes[0]:.3g} forward and {total.passes[1]:.3g} backward passes" if any(total.passes) else ""
        tell(f"to do: {_duration(total.seconds)} of work for one worker{passes} ({bases})", "  ")
    if unknown:
        tell(f"to do: {unknown} of {count} cells take unknown time: nothing like them is in the results folder", "  ")
    if total.peak_bytes:
        tell(f"memory: a worker has held up to {total.peak_bytes / 2**30:.1f} GiB on the cells in the results folder", "  ")


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _list(items: object) -> str:
    return ", ".join(str(item) for item in items)  # type: ignore[attr-defined]
