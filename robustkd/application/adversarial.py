"""The adversarial inputs that a campaign kept, as files for somebody else."""

from __future__ import annotations

from pathlib import Path

from robustkd.campaigns.execution.job import Job
from robustkd.campaigns.execution.workspace import Workspace
from robustkd.campaigns.file.campaign import Campaign
from robustkd.campaigns.plan import plan as planning
from robustkd.campaigns.plan.cells import AttackCell
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.store import Store
from robustkd.contracts import Attack, Batch, StoreError, Target, UsageError, suggestion
from robustkd.evaluation.judging import ImageOutcome
from robustkd.evaluation.modality import with_goals
from robustkd.evaluation.saved import Attacked, require_place, save
from robustkd.lazy import torch


def save_adversarial(
    campaign: Campaign, folder: Path, defense: str, attack: str, seed: int | None, path: str, device: str = "auto"
) -> str:
    """Write the inputs that ``attack`` found on ``defense`` to ``path``, as ``AttackReport.save`` does, and say what was written.

    Args:
        folder: the campaign's results folder.
        seed: the campaign's first by default.

    Raises:
        UsageError: there is no such attack in the campaign, it is one on prompts, or ``path`` cannot be used.
        StoreError: the attack is not finished, or its inputs were not kept.
    """
    seed = campaign.seeds[0] if seed is None else seed
    cell = _cell(campaign, defense, attack, seed)
    store = Store(folder)
    entry = store.get(cell.id)
    if entry is None:
        raise StoreError(f"{folder} has no finished {cell.title}", fix="robustkd run the campaign first")
    outcome, kept = samples.read(entry).outcome, samples.perturbed(entry)
    if not isinstance(outcome, ImageOutcome):
        raise UsageError(f"'{attack}' attacks prompts, and these are no images", fix="its transcripts are in the report")
    if kept is None:
        raise StoreError(
            f"the inputs that {cell.title} found were not kept", fix="robustkd run .. --keep-perturbations 500 --redo " + attack
        )
    require_place(path, kept.shape[1:], campaign.attacks[attack].threat)
    workspace = Workspace(
        Job(campaign.text, campaign.origin, str(campaign.folder), str(folder.resolve()), device),
        lambda *_: None,
        writes=False,
    )
    target, batch = workspace.attacked(cell)
    use = campaign.attacks[attack]
    assert isinstance(target, Target)
    assert isinstance(batch, Batch)
    assert isinstance(use.plugin, Attack)
    rows = slice(0, len(kept))
    batch = with_goals(batch, use.threat, seed, workspace.data.num_classes).select(rows).to("cpu")
    columns = {name: array[rows] for name, array in outcome.columns().items()}
    found = ImageOutcome.of_columns(columns)
    adversarial = torch.from_numpy(kept.copy())
    told = save(path, Attacked(target, use.plugin, use.threat, batch, seed), adversarial, found)
    left = len(outcome) - len(kept)
    return f"{told}; the inputs of the other {left} samples were not kept" if left else told


def _cell(campaign: Campaign, defense: str, attack: str, seed: int) -> AttackCell:
    for what, name, known in (("defense", defense, campaign.defenses), ("attack", attack, campaign.attacks)):
        if name not in known:
            raise UsageError(
                f"the campaign '{campaign.name}' has no {what} '{name}'",
                fix=suggestion(name, known) or f"one of: {', '.join(known)}",
            )
    plan = planning.build(campaign)
    for cell in plan.of("attack"):
        if (cell.defense, cell.attack, cell.seed) == (defense, attack, seed):
            return cell
    skipped = [item.reason for item in plan.skipped if (item.defense, item.attack) == (defense, attack)]
    why = skipped[0] if skipped else f"its seeds are {', '.join(map(str, campaign.seeds))}"
    raise UsageError(f"the campaign '{campaign.name}' has no {defense} × {attack} · seed {seed}: {why}")
