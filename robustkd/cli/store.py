"""``robustkd store``: what is on the disk, apart from any one run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustkd.cli import names
from robustkd.cli.options import json_option, out_option, print_reserved, tell

if TYPE_CHECKING:
    from robustkd.campaigns.plan.plan import Plan
    from robustkd.campaigns.results.inventory import Stored
    from robustkd.campaigns.store.store import Store


class _Group(click.Group):
    """Tells what each of its commands does in a whole sentence, where click cuts it to a line."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(1000)) for name, one in sorted(self.commands.items())])


@click.group("store", cls=_Group)
def command() -> None:
    """List, verify, prune and export the finished cells of an output folder."""


@command.command("list")
@click.argument("campaigns", nargs=-1, required=True, metavar="CAMPAIGN...", shell_complete=names.campaigns)
@out_option
@json_option
def list_cells(campaigns: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """List every cell of the folder, and which of the campaigns still needs it."""
    from robustkd.campaigns.results.inventory import inventory

    plans, store = _opened(campaigns, out)
    cells = list(inventory(store, plans))
    if as_json:
        print_reserved(json.dumps([asdict(cell) for cell in cells], indent=1))
        return
    for cell in sorted(cells, key=lambda cell: (cell.kind, cell.defense, cell.attack, cell.seed or 0)):
        _print(cell)
    unused = [cell for cell in cells if not cell.used_by]
    whole, perturbed, spare = (
        _size(size)
        for size in (
            sum(cell.bytes for cell in cells),
            sum(cell.perturbations for cell in cells),
            sum(cell.bytes for cell in unused),
        )
    )
    tell(f"{len(cells)} cells, {whole} ({perturbed} of it perturbations); {len(unused)} that no campaign needs, {spare}")


@command.command()
@click.argument("campaign", shell_complete=names.campaigns)
@out_option
@click.option("--remove", is_flag=True, help="Remove the damaged cells, so that the next run does them again.")
@json_option
def verify(campaign: str, out: Path | None, remove: bool, as_json: bool) -> None:
    """Read every file of the folder's cells again, and name what is damaged. Exit code 1 when something is."""
    from robustkd.application.campaign import campaign_named
    from robustkd.campaigns.store.store import Store

    store = Store(campaign_named(campaign, out)[1])
    ids = store.ids()
    damaged = {cell_id: why for cell_id in ids if (why := store.verify(cell_id))}
    if remove and damaged:
        with store.exclusive_lock():
            for cell_id in damaged:
                store.remove(cell_id)
    if as_json:
        print_reserved(json.dumps({"cells": len(ids), "damaged": damaged, "removed": remove}, indent=1))
    else:
        for why in damaged.values():
            tell(why)
        tell(f"{len(ids)} cells verified, {len(damaged)} damaged" + (" and removed" if remove and damaged else ""))
        if damaged and not remove:
            tell("robustkd run does again those that it needs; --remove drops them all")
    if damaged:
        raise click.exceptions.Exit(1)


@command.command()
@click.argument("campaigns", nargs=-1, required=True, metavar="CAMPAIGN...", shell_complete=names.campaigns)
@out_option
@click.option("--perturbations", is_flag=True, help="Drop the perturbed inputs of all cells instead; their numbers stay.")
@click.option("--yes", is_flag=True, help="Do it. Without, only what would be removed is told.")
@json_option
def prune(campaigns: tuple[str, ...], out: Path | None, perturbations: bool, yes: bool, as_json: bool) -> None:
    """Remove the cells, and the checkpoints, that none of the campaigns needs."""
    from robustkd.campaigns.results.inventory import inventory

    plans, store = _opened(campaigns, out)
    with store.exclusive_lock():  # a run would miss what is removed under it
        needed = {cell.id for plan in plans.values() for cell in plan.cells}
        chosen = [cell for cell in inventory(store, plans) if (cell.perturbations if perturbations else not cell.used_by)]
        if yes:
            for cell in chosen:
                if perturbations:
                    store.drop_perturbations(cell.id)
                else:
                    store.remove(cell.id)
            if not perturbations:
                store.discard_checkpoints(store.with_checkpoints() - needed)
    freed = sum(cell.perturbations if perturbations else cell.bytes for cell in chosen)
    if as_json:
        print_reserved(json.dumps({"cells": [asdict(cell) for cell in chosen], "bytes": freed, "removed": yes}, indent=1))
        return
    for cell in chosen:
        _print(cell)
    what = f"the perturbations of {len(chosen)} cells" if perturbations else f"{len(chosen)} cells"
    tell(f"{'removed' if yes else 'would remove'} {what}, {_size(freed)}" + ("" if yes else "; --yes does it"))


@command.command("export")
@click.argument("campaign", shell_complete=names.campaigns)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@out_option
def export_samples(campaign: str, file: Path, out: Path | None) -> None:
    """Write one row for each sample, attack, defense and seed into FILE (.parquet or .csv)."""
    from robustkd.campaigns.results.inventory import export

    plans, store = _opened((campaign,), out)
    (plan,) = plans.values()
    cells, rows = export(plan, store, file)
    missing = len(plan.of("attack")) - cells
    tell(f"{file}: {rows} rows of {cells} attacks" + (f"; {missing} attacks are not finished" if missing else ""))


def _opened(campaigns: tuple[str, ...], out: Path | None) -> tuple[dict[str, Plan], Store]:
    """The plans of some campaigns by name, and the one store that they share."""
    from robustkd.application.campaign import campaign_named
    from robustkd.campaigns.plan import plan
    from robustkd.campaigns.store.store import Store
    from robustkd.contracts import UsageError

    named = [campaign_named(campaign, out) for campaign in campaigns]
    folders = {folder.resolve() for _, folder in named}
    if len(folders) > 1:
        raise UsageError("these campaigns have different output folders", fix="name the one that is meant with --out")
    return {campaign.name: plan.build(campaign) for campaign, _ in named}, Store(named[0][1])


def _print(cell: Stored) -> None:
    if cell.damaged:
        tell(f"damaged: {cell.damaged}")
        return
    title = f"{cell.defense} {cell.attack}".strip() + f" seed {cell.seed}"
    used = ", ".join(cell.used_by) or "unused"
    click.echo(f"{cell.kind:<8} {title:<44} {_size(cell.bytes):>8} {cell.seconds:>9.1f} s  {used}  {cell.id[:12]}")


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
