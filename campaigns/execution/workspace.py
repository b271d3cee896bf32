"""What a process that works on cells holds between them: the campaign, its data, and the targets that it used last."""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from robustkd.campaigns.execution.job import Job, Report
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan.cells import AttackCell, Cell, TrainCell
from robustkd.campaigns.plan.changes import differences
from robustkd.campaigns.plan.plan import CellMaker
from robustkd.campaigns.results.findings import read_table
from robustkd.campaigns.store.identity import content_hash, hashes_of_files
from robustkd.campaigns.store.meta import Circumstances, TrainMeta
from robustkd.campaigns.store.store import Store
from robustkd.contracts import (
    BaseTarget,
    Batch,
    IdentityError,
    Judge,
    PromptBatch,
    Target,
    TargetError,
    ThreatModel,
)
from robustkd.contracts.devices import device_named
from robustkd.contracts.holder import TargetHolder
from robustkd.contracts.random import seed_torch
from robustkd.data import Splits, load_splits
from robustkd.evaluation.modality import evaluation_of
from robustkd.lazy import torch
from robustkd.targets import SplitTarget, load_target
from robustkd.targets.features import with_perceptual_features_of

_User = TypeVar("_User", bound=TargetHolder)
_LOADED = 2
"""How many targets stay in memory."""


class Workspace:
    """One process's hold on a campaign: its data and the targets it used last stay loaded between cells.

    Args:
        writes: whether it writes cells to the store; of several processes that train one network together, one does.

    Attributes:
        report: hears of each epoch of a training.
        modality: how the campaign's data are evaluated.
    """

    def __init__(self, job: Job, report: Report, *, writes: bool) -> None:
        self.job, self.report, self.writes = job, report, writes
        self.campaign = spec.from_text(job.text, job.origin, Path(job.folder))
        self.modality = evaluation_of(self.campaign.data.modality)
        self.store = Store(Path(job.store))
        self.device = device_named(job.device)
        self._ready: OrderedDict[tuple[str, str, int], tuple[BaseTarget, Batch | PromptBatch]] = OrderedDict()
        self._judging: tuple[tuple[str, ...], dict[str, Judge]] | None = None

    @cached_property
    def data(self) -> Splits[Any]:
        """The campaign's data, loaded once."""
        block = self.campaign.data
        return load_splits(block.name, block.params, block.split)

    @cached_property
    def _maker(self) -> CellMaker:
        return CellMaker(self.campaign, self.data)

    def verify(self, cell: Cell) -> None:
        """Look at the files anew, and compare a cell with what this process sees.

        Raises:
            IdentityError: plug-ins, files or data are not those that the cell was planned with.
        """
        self._maker.forget()
        self._compare(cell, self._maker.again(cell))

    def _compare(self, planned: Cell, seen: Cell) -> None:
        if seen.id == planned.id:
            return
        use = self.campaign.defenses.get(planned.defense) if isinstance(planned, TrainCell) else None
        known = hashes_of_files(planned.identity)
        changed = [file.name for file in use.plugin.files() if content_hash(file) not in known] if use else []
        said = f"{' and '.join(changed)} changed" if changed else "; ".join(differences(planned.identity, seen))
        raise IdentityError(
            f"'{planned.plugin or planned.defense}' is not what the campaign was planned with: {said}",
            fix="leave files as they are while a campaign runs, install the same packages wherever its cells run, and run it again",
        )

    def circumstances(self, cell: Cell, seconds: float) -> Circumstances:
        """What is noted about a cell of any kind that took ``seconds``."""
        unit = 1 if sys.platform == "darwin" else 1024
        return {
            "id": cell.id,
            "defense": cell.defense,
            "seed": cell.seed,
            "identity": dict(cell.identity),
            "device": str(self.device),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "wall_seconds": seconds,
            "peak_bytes": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }

    def target(self, name: str, cell_id: str, seed: int) -> BaseTarget:
        """The target of a finished train cell of the defense ``name``, on the device.

        Raises:
            TargetError: the store does not have it.
            IdentityError: it is built anew, from other code or files than it was.
        """
        entry = self.store.get(cell_id)
        if entry is None:
            raise TargetError(
                f"the trained target {cell_id} is missing or damaged", fix="run the campaign again: it trains it anew"
            )
        if name in self.campaign.defenses and self.campaign.defenses[name].plugin.rebuilt:
            seen = self._maker.target(name, seed)  # its code runs again where it is loaded
            self._compare(replace(seen, id=cell_id, identity=entry.meta.identity), seen)
        target = load_target(entry.folder, self.campaign.code).to(self.device)
        self._connect(name, target)
        return target

    def _connect(self, name: str, target: BaseTarget) -> None:
        if use := self.campaign.defenses.get(name):
            use.plugin.connect(target, self.store.answers)
            for part, inner in use.plugin.parts(target).items():
                self._connect(part, inner)

    def bounded(self, name: str, cell_id: str, seed: int) -> BaseTarget:
        """What ``target`` gives; a classifier is called with no more samples at once than the run's ``batch_size``."""
        target, most = self.target(name, cell_id, seed), self.job.batch_size
        return SplitTarget(target, most) if most and isinstance(target, Target) else target

    def fingerprint(self, cell_id: str) -> str:
        """The hash of a train cell's target; empty where there is none."""
        entry = self.store.get(cell_id)
        return entry.noted(TrainMeta).fingerprint if entry else ""

    def fingerprints(self, *cell_ids: str) -> dict[str, str]:
        """The hashes of train cells' targets, by the cells' ids."""
        return {cell_id: self.fingerprint(cell_id) for cell_id in cell_ids}

    def with_others(self, plugin: _User, others: Mapping[str, str], seed: int) -> _User:
        """An attack or analysis with the targets that it refers to; ``others`` has the ids of their train cells."""
        targets = {name: self.bounded(name, cell_id, seed) for name, cell_id in others.items()}
        return plugin.with_targets(targets) if targets else plugin

    def with_perceptual_features(self, threat: ThreatModel, cell: Cell) -> ThreatModel:
        """A threat model with the network that it is measured by, if it is another than the attacked one."""
        return with_perceptual_features_of(
            threat, {name: self.bounded(name, cell.others[name], cell.seed) for name in threat.budget.references}
        )

    def judges(self, cell: Cell) -> dict[str, Judge]:
        """The campaign's judges, with the targets that they judge with."""
        if not cell.judges:
            return {name: use.plugin for name, use in self.campaign.judges.items()}
        key = tuple(self.fingerprint(cell_id) for cell_id in cell.judges.values())
        if self._judging is None or self._judging[0] != key:
            targets = {name: self.target(name, cell_id, cell.seed) for name, cell_id in cell.judges.items()}
            self._judging = key, {name: use.plugin.with_targets(targets) for name, use in self.campaign.judges.items()}
        return self._judging[1]

    def certified(self, cell: AttackCell) -> list[bool]:
        """Whether the first samples, one after the other, are proved to be robust by one of the cell's certificates."""
        entries = [self.store.get(cell_id) for cell_id in cell.certificates.values()]
        found = [table.certificate for entry in entries if entry is not None and (table := read_table(entry))]
        proofs = [one.robust for one in found if one is not None and one.error == 0]
        return [any(of_sample) for of_sample in zip_longest(*proofs, fillvalue=False)]

    def attacked(self, cell: Cell) -> tuple[BaseTarget, Batch | PromptBatch]:
        """A target on the device, and the test samples with what it answers unattacked; the last few are kept.

        Raises:
            TargetError: the target is of another modality than the data.
        """
        key = (cell.target, self.fingerprint(cell.target), cell.seed)
        if key not in self._ready:
            self._ready[key] = self._loaded(cell)
            while len(self._ready) > _LOADED:
                self._ready.popitem(last=False)
        self._ready.move_to_end(key)
        seed_torch(cell.seed)  # whether the target was at hand already must not show in what it draws
        return self._ready[key]

    def _loaded(self, cell: Cell) -> tuple[BaseTarget, Batch | PromptBatch]:
        target = self.bounded(cell.defense, cell.target, cell.seed)
        batch = self.modality.prepare(
            target,
            self.data,
            lambda: self.judges(cell),
            name=cell.defense,
            seed=cell.seed,
            device=self.device,
            batch_size=self.job.batch_size,
        )
        return target, batch


class Clock:
    """Counts the seconds since it was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the clock was made."""
        return time.perf_counter() - self._started
