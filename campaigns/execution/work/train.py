"""Train a defense, or build its target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from robustkd.campaigns.execution.torchrun import train_together
from robustkd.campaigns.execution.workspace import Clock, Workspace
from robustkd.campaigns.plan.cells import TrainCell
from robustkd.campaigns.store.identity import content_hash, digest, relative
from robustkd.campaigns.store.meta import Built, TrainMeta
from robustkd.contracts import FitContext, StoreError
from robustkd.plugins.sources import files_read
from robustkd.targets import save_target
from robustkd.targets.files import fingerprint, fingerprint_of_built


def train(cell: TrainCell, workspace: Workspace) -> None:
    """Train a defense and write its target to the store.

    Raises:
        StoreError: the data have no training part.
        IdentityError: a file that the defense reads has changed meanwhile.
    """
    clock, store, campaign = Clock(), workspace.store, workspace.campaign
    use = campaign.defenses[cell.defense]
    if workspace.job.training_processes > 1 and use.plugin.uses_data:
        train_together(workspace.job, cell, store.checkpoints(cell.id), workspace.report)
        return
    history: list[dict[str, float]] = []

    def log(epoch: int, metrics: Mapping[str, float]) -> None:
        history.append({"epoch": epoch, **metrics})
        workspace.report(cell, epoch, metrics)

    context = _context(cell, workspace, log)
    teachers = workspace.fingerprints(*cell.others.values())
    with files_read() as read:
        target = use.plugin.fit(context)
    target.module.eval()
    if use.plugin.files():
        workspace.verify(cell)  # they may have changed while it read them
    if not workspace.writes:
        return
    seen = fingerprint_of_built(target) if use.plugin.rebuilt else fingerprint(target)
    built = Built(fingerprint=seen, files=_hashes(read, campaign.folder), card=digest(target.card()))
    meta = TrainMeta(
        **workspace.circumstances(cell, clock.seconds),
        targets=teachers,
        fingerprint=seen,
        history=history,
        built=built if use.plugin.rebuilt else None,
    )
    with store.write(cell.id, meta) as folder:
        save_target(target, folder)
    store.discard_checkpoints([cell.id])


def _context(cell: TrainCell, workspace: Workspace, log: Callable[[int, Mapping[str, float]], None]) -> FitContext[Any]:
    use, data = workspace.campaign.defenses[cell.defense], workspace.data
    if use.plugin.uses_data and (data.train is None or data.validation is None):
        raise StoreError(
            f"defense '{cell.defense}' trains, but the data '{workspace.campaign.data.name}' have no training part",
            fix="use a data set with one, or a defense of kind 'external'",
        )
    return FitContext(
        train=data.train,
        validation=data.validation,
        input_shape=data.input_shape,
        num_classes=data.num_classes,
        threat=workspace.campaign.threat,
        seed=use.training_seed(cell.seed),
        device=workspace.device,
        checkpoints=workspace.store.checkpoints(cell.id),
        targets={name: workspace.target(name, teacher, cell.seed) for name, teacher in cell.others.items()},
        log=log,
        bounds=None if data.unit is None else data.unit.written,
        label=data.label,
        classes=data.classes,
        outputs_known=data.outputs_known,
    )


def _hashes(files: Iterable[Path], home: Path) -> dict[str, str]:
    return {relative(file, home): content_hash(file) for file in files}
