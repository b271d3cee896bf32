"""Which cells of a plan need not be run."""

from __future__ import annotations

from collections.abc import Collection

from robustkd.campaigns.plan.cells import ChecksCell, TrainCell
from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.store.meta import ChecksMeta, TrainMeta
from robustkd.campaigns.store.store import Entry, Store


def valid_cells(plan: Plan, store: Store, failed: Collection[str] = ()) -> set[str]:
    """Return the ids of the stored cells whose outcome is still that of the plan.

    A cell that stands on targets which have since been trained or built anew, and came out different, is not among them (STORE.md),
    nor are checks that have not seen an attack which is valid.

    Args:
        failed: ids of cells that this run could not do; what the store still holds of them is of an earlier state.
    """
    fingerprints: dict[str, str] = {}
    valid: set[str] = set()
    for cell in plan.cells:
        entry = store.get(cell.id)
        if entry is None or cell.id in failed:
            continue
        if any(fingerprints.get(target, seen) != seen for target, seen in entry.meta.targets.items()):
            continue
        if isinstance(cell, ChecksCell) and not valid.isdisjoint(_unseen(cell, entry, valid)):
            continue
        if isinstance(cell, TrainCell):
            fingerprints[cell.id] = entry.noted(TrainMeta).fingerprint
        valid.add(cell.id)
    return valid


def finished_cells(plan: Plan, store: Store, failed: Collection[str] = (), tried: Collection[str] = ()) -> set[str]:
    """Return the ids of the cells that need not be run.

    These are the valid ones, but for checks of which an attack is missing that has not ``failed``, for those of which one could not
    be run, for a reason that may have passed, unless they have been ``tried``, and for attacks whose perturbations are damaged while
    checks that look at them have to be made.
    """
    done = valid_cells(plan, store, failed)
    for cell in plan.of("checks"):
        entry = store.get(cell.id)
        if entry and (not _unseen(cell, entry, done).issubset(failed) or (not entry.meta.complete and cell.id not in tried)):
            done.discard(cell.id)
        if cell.id not in done:  # it will look at the perturbations, which are verified only when somebody does
            done -= {attack for attack in cell.attacks.values() if attack in done and store.verify(attack)}
    return done


def rebuilt_cells(plan: Plan) -> set[str]:
    """Return the ids of the train cells whose targets are built anew in each run (``Defense.rebuilt``)."""
    return {cell.id for cell in plan.of("train") if plan.campaign.defenses[cell.defense].plugin.rebuilt}


def _unseen(checks: ChecksCell, entry: Entry, valid: Collection[str]) -> set[str]:
    """Ids of the attacks that findings are not about, because they had failed when these were made."""
    seen = entry.noted(ChecksMeta).seen
    return {need for name, need in checks.attacks.items() if (need not in valid if seen is None else name not in seen)}
