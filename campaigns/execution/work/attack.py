"""The work of an attack cell: attack a trained defense."""

from __future__ import annotations

from robustkd.campaigns.execution.workspace import Clock, Workspace
from robustkd.campaigns.plan.cells import AttackCell
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.identity import digest
from robustkd.campaigns.store.meta import AttackMeta
from robustkd.campaigns.store.shards import ShardFiles
from robustkd.contracts import StoreError
from robustkd.evaluation.modality import Conditions


def attack(cell: AttackCell, workspace: Workspace) -> None:
    """Attack a target and write what became of each sample to the store.

    Raises:
        StoreError: the attack learns, and the data have no training part.
    """
    clock, use, job = Clock(), workspace.campaign.attacks[cell.attack], workspace.job
    target, batch = workspace.attacked(cell)
    if use.plugin.traits.learns and workspace.data.train is None:
        raise StoreError(
            f"attack '{cell.attack}' learns, but the data '{workspace.campaign.data.name}' have no training part",
            fix="use a data set with one",
        )
    plugin = workspace.with_others(use.plugin, cell.others, cell.seed)
    targets = workspace.fingerprints(*cell.required)
    opened: list[ShardFiles] = []

    def shards(kept: int) -> ShardFiles:
        opened.append(ShardFiles(workspace.store.checkpoints(cell.id), digest(cell.id, targets, kept)))
        return opened[-1]

    under = Conditions(
        seed=cell.seed,
        judges=lambda: workspace.judges(cell),
        num_classes=workspace.data.num_classes,
        curve=use.curve,
        train=workspace.data.train,
        precision=job.precision,
        batch_size=job.batch_size,
        rows_kept=lambda size: samples.rows_kept(size, job.keep_bytes),
        shards=shards,
        certified=workspace.certified(cell),
    )
    found = workspace.modality.evaluate(target, plugin, batch, workspace.with_perceptual_features(use.threat, cell), under)
    meta = AttackMeta(
        **workspace.circumstances(cell, clock.seconds + sum(files.seconds for files in opened)),
        attack=cell.attack,
        others=dict(cell.others),
        targets=targets,
        kept=len(found.adversarial),
        passes=[int(found.outcome.forwards.sum()), int(found.outcome.backwards.sum())],
        precision=job.precision if workspace.modality.with_precision else None,
        benign=None if found.benign is None else found.benign.tolist(),
        harmless_alarms=None if found.harmless_alarms is None else found.harmless_alarms.tolist(),
    )
    record = samples.AttackRecord(found.outcome, found.broken_at)
    clean = None if found.clean is None else found.clean.numpy()
    logits = None if found.logits is None else found.logits.numpy()
    with workspace.store.write(cell.id, meta) as folder:
        samples.write(record, found.adversarial.numpy(), folder, clean=clean, logits=logits, transcripts=found.transcripts)
    workspace.store.discard_checkpoints([cell.id])
