"""Attack a trained defense."""

from __future__ import annotations

from dataclasses import replace

from robustkd.campaigns.execution.workspace import Clock, Workspace
from robustkd.campaigns.plan.cells import AttackCell
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.identity import digest
from robustkd.campaigns.store.meta import AttackMeta
from robustkd.campaigns.store.shards import ShardFiles
from robustkd.contracts import Attack, Batch, GenerativeTarget, PromptAttack, PromptBatch, StoreError, Target
from robustkd.contracts.random import SampleRng
from robustkd.evaluation.images import SHARD, Evaluation, evaluate_attack
from robustkd.evaluation.prompts import evaluate_prompt_attack


def attack(cell: AttackCell, workspace: Workspace) -> None:
    """Attack a target and write what became of each sample to the store.

    Raises:
        StoreError: the attack learns, and the data have no training part.
    """
    clock = Clock()
    target, batch = workspace.attacked(cell)
    if workspace.campaign.attacks[cell.attack].plugin.traits.learns and workspace.data.train is None:
        raise StoreError(
            f"attack '{cell.attack}' learns, but the data '{workspace.campaign.data.name}' have no training part",
            fix="use a data set with one",
        )
    plugin = workspace.with_others(workspace.campaign.attacks[cell.attack].plugin, cell.others, cell.seed)
    match plugin, target, batch:
        case PromptAttack(), GenerativeTarget(), PromptBatch():
            _ask(cell, workspace, plugin, target, batch, clock)
        case Attack(), Target(), Batch():
            _perturb(cell, workspace, plugin, target, batch, clock)
        case _:  # the campaign's file and the workspace have seen to it
            raise TypeError(f"{type(plugin).__name__} on a {type(target).__name__}")


def _ask(
    cell: AttackCell, workspace: Workspace, plugin: PromptAttack, target: GenerativeTarget, batch: PromptBatch, clock: Clock
) -> None:
    use = workspace.campaign.attacks[cell.attack]
    targets = workspace.fingerprints(*cell.needs)
    classes, judges = workspace.data.num_classes, workspace.judges(cell)
    found = evaluate_prompt_attack(target, plugin, batch, use.threat, judges, num_classes=classes, seed=cell.seed)
    kept = min(len(found.adversarial), samples.rows_kept(found.adversarial[:1].nbytes, workspace.job.keep_bytes))
    meta = AttackMeta(
        **workspace.circumstances(cell, clock.seconds),
        attack=cell.attack,
        others=dict(cell.others),
        targets=targets,
        kept=kept,
        passes=_passes(found),
        benign=None if batch.benign is None else batch.benign.complied.tolist(),
    )
    _write(cell, workspace, meta, found, kept)


def _perturb(cell: AttackCell, workspace: Workspace, plugin: Attack, target: Target, batch: Batch, clock: Clock) -> None:
    use, data, job = workspace.campaign.attacks[cell.attack], workspace.data, workspace.job
    targets = workspace.fingerprints(*cell.needs)
    if use.threat.goal == "targeted":
        batch = _with_goals(batch, cell.seed, data.num_classes)
    kept = min(len(batch), samples.rows_kept(batch.inputs[0].nbytes, job.keep_bytes))
    checkpoints = workspace.store.checkpoints(cell.id)
    shards = ShardFiles(checkpoints, digest(cell.id, targets, kept)) if len(batch) > SHARD else None
    found = evaluate_attack(
        target,
        plugin,
        batch,
        use.threat,
        seed=cell.seed,
        curve=use.curve,
        fit_data=data.train if plugin.traits.learns else None,
        kept=kept,
        shards=shards,
        precision=job.precision,
    )
    meta = AttackMeta(
        **workspace.circumstances(cell, clock.seconds + (shards.seconds if shards else 0.0)),
        attack=cell.attack,
        others=dict(cell.others),
        targets=targets,
        kept=kept,
        passes=_passes(found),
        precision=job.precision,
    )
    _write(cell, workspace, meta, found, kept)


def _passes(found: Evaluation) -> list[int]:
    return [int(found.outcome.forwards.sum()), int(found.outcome.backwards.sum())]


def _write(cell: AttackCell, workspace: Workspace, meta: AttackMeta, found: Evaluation, kept: int) -> None:
    """Write a finished attack, with the perturbed inputs of the first ``kept`` samples."""
    record = samples.AttackRecord(found.outcome, found.broken_at)
    clean = None if found.clean is None else found.clean[:kept].numpy()
    with workspace.store.write(cell.id, meta) as folder:
        samples.write(record, found.adversarial[:kept].numpy(), folder, clean=clean, transcripts=found.transcripts)
    workspace.store.discard_checkpoints([cell.id])


def _with_goals(batch: Batch, seed: int, num_classes: int) -> Batch:
    """Each sample's goal: one of the wrong classes, drawn from the sample's own stream."""
    offset = 1 + SampleRng(seed, batch.index, "goals").integers((), num_classes - 1)
    return replace(batch, goals=(batch.labels + offset) % num_classes)
