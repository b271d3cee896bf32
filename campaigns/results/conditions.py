"""What decides the number of an attack beside its parameters: the other networks that it uses, and the data that it learns from."""

from __future__ import annotations

from robustkd.campaigns.plan.cells import AttackCell, TrainCell
from robustkd.campaigns.plan.plan import Plan
from robustkd.campaigns.store.identity import digest, resolve_references


def conditions(plan: Plan, cell: AttackCell) -> dict[str, str]:
    """See ``CellResult.conditions``. Networks count by what they were trained from: trained on another machine they are the same."""
    judge = next(iter(plan.campaign.judges.values()), None)
    judging = judge.references if judge else []
    if not (cell.others or judging or cell.identity.get("training data")):
        return {}
    trained = {train.defense: train for train in plan.of("train") if train.seed == cell.seed}
    used = {f"network {name}": name for name in cell.others} | {f"judge's network {name}": name for name in judging}
    found = {told: _recipe(name, cell.defense, trained) for told, name in used.items() if name != cell.defense}
    if data := cell.identity.get("training data"):
        found["training data"] = digest(data)
    return found


def _recipe(name: str, attacked: str, trained: dict[str, TrainCell]) -> str:
    """The id of a network's train cell; where it is made of the attacked one (a student of it), a digest that is without that one.

    Else no defense that is trained anew could be held against itself under such an attack: all that is made of it is made anew.
    """
    train = trained[name]
    others = {
        id_: "attacked" if other == attacked else _recipe(other, attacked, trained) for other, id_ in train.others.items()
    }
    if all(id_ == recipe for id_, recipe in others.items()):
        return train.id
    return digest(*resolve_references(list(train.identity.values()), others))
