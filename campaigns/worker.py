"""What happens inside a cell: train, attack, check or analyse, and write the outcome to the store. Runs in a child process."""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from robustkd.campaigns import samples, spec
from robustkd.campaigns.cells import Cell
from robustkd.campaigns.collect import FINDINGS, TABLE
from robustkd.campaigns.identity import digest
from robustkd.campaigns.shards import ShardFiles
from robustkd.campaigns.store import KEPT_BYTES, Store
from robustkd.checking import run_checks, run_remedies
from robustkd.contracts import (
    Analysis,
    Attack,
    AttackEvidence,
    Batch,
    CheckContext,
    FitContext,
    GenerativeTarget,
    Judge,
    PromptAttack,
    PromptBatch,
    StoreError,
    Target,
    TargetError,
)
from robustkd.contracts.random import SampleRng
from robustkd.contracts.target import Precision
from robustkd.data import Splits, load_splits
from robustkd.evaluation import SHARD, Evaluation, evaluate_attack, evidence_of, make_batch, with_clean_logits
from robustkd.prompting import evaluate_prompt_attack, prepare
from robustkd.targets import fingerprint, load_target, save_target, untouched

_Holder = TypeVar("_Holder", Attack, Analysis)
Report = Callable[[Cell, int, Mapping[str, float]], None]
"""``report(cell, epoch, metrics)`` while a cell is running."""


@dataclass(frozen=True)
class Job:
    """What a child must know to work on the cells of a campaign; none of it enters a cell's identity but through ``text``."""

    text: str
    origin: str
    folder: str
    store: str
    device: str = "auto"
    precision: Precision = "full"
    threads: int = 1
    keep_bytes: int = KEPT_BYTES
    training_processes: int = 1


def device_named(name: str) -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class Worker:
    """One process's hold on a campaign: its data and the targets it used last stay loaded between cells.

    Args:
        writes: whether it writes cells to the store; of several processes that train one network together, one does.
    """

    def __init__(self, job: Job, report: Report = lambda cell, epoch, metrics: None, *, writes: bool = True) -> None:
        torch.set_num_threads(job.threads)
        self._job, self._writes = job, writes
        self._campaign = spec.from_text(job.text, job.origin, Path(job.folder))
        self._store = Store(Path(job.store))
        self._device = device_named(job.device)
        self._report = report
        self._data: Splits | None = None
        self._ready: OrderedDict[tuple[str, str, int], tuple[Target, Any]] = OrderedDict()
        self._judging: tuple[tuple[str, ...], dict[str, Judge]] | None = None

    @property
    def data(self) -> Splits:
        """The campaign's data, loaded once."""
        if self._data is None:
            block = self._campaign.data
            self._data = load_splits(block.name, block.params, block.split)
        return self._data

    def run(self, cell: Cell) -> None:
        """Do a cell whose needs are in the store, and write it there."""
        torch.manual_seed(cell.seed)
        meta: dict[str, Any] = {
            "id": cell.id,
            "kind": cell.kind,
            "defense": cell.defense,
            "attack": cell.attack,
            "analysis": cell.analysis,
            "seed": cell.seed,
            "identity": dict(cell.identity),
            "device": str(self._device),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        started = time.perf_counter()
        work = {"train": self._train, "attack": self._attack, "checks": self._checks, "analysis": self._analyse}
        work[cell.kind](cell, meta, started)

    def _train(self, cell: Cell, meta: dict[str, Any], started: float) -> None:
        use = self._campaign.defenses[cell.defense]
        if self._job.training_processes > 1 and use.plugin.uses_data:
            from robustkd.campaigns.torchrun import train_together

            train_together(self._job, cell, self._store.checkpoints(cell.id), self._report)
            return
        data = self.data
        history: list[dict[str, float]] = []

        def log(epoch: int, metrics: Mapping[str, float]) -> None:
            history.append({"epoch": epoch, **metrics})
            self._report(cell, epoch, metrics)

        if use.plugin.uses_data and (data.train is None or data.validation is None):
            raise StoreError(
                f"defense '{cell.defense}' trains, but the data '{self._campaign.data.name}' have no training part",
                fix="use a data set with one, or a defense of kind 'external'",
            )
        teachers = dict(zip(use.references, cell.needs, strict=True))
        context = FitContext(
            train=data.train,
            validation=data.validation,
            input_shape=data.input_shape,
            num_classes=data.num_classes,
            threat=self._campaign.threat,
            seed=use.training_seed(cell.seed),
            device=self._device,
            checkpoints=self._store.checkpoints(cell.id),
            targets={name: self._target(teacher) for name, teacher in teachers.items()},
            log=log,
        )
        meta["targets"] = {teacher: self._fingerprint(teacher) for teacher in cell.needs}
        target = use.plugin.fit(context)
        target.module.eval()
        if not self._writes:
            return
        meta |= {"fingerprint": fingerprint(target), "history": history, **_spent(time.perf_counter() - started)}
        with self._store.write(cell.id, meta) as folder:
            save_target(target, folder)
        self._store.discard_checkpoints([cell.id])

    def _attack(self, cell: Cell, meta: dict[str, Any], started: float) -> None:
        use = self._campaign.attacks[cell.attack or ""]
        target, batch = self._attacked(cell)
        if use.plugin.learns and self.data.train is None:
            raise StoreError(
                f"attack '{use.name}' learns, but the data '{self._campaign.data.name}' have no training part",
                fix="use a data set with one",
            )
        meta["others"] = dict(zip(use.references, cell.needs[1:], strict=False))  # those of the judges follow
        attack = self._holding(use.plugin, meta["others"])
        targets = {need: self._fingerprint(need) for need in cell.needs}
        if isinstance(batch, PromptBatch):
            assert isinstance(attack, PromptAttack)  # the campaign's spec has seen to it
            found = evaluate_prompt_attack(
                target, attack, batch, use.threat, self._judges(cell), num_classes=self.data.num_classes, seed=cell.seed
            )
            kept = min(len(found.adversarial), samples.rows_kept(found.adversarial[:1].nbytes, self._job.keep_bytes))
            if batch.benign is not None:
                meta["benign"] = batch.benign.complied.tolist()
            self._commit(cell, meta | {"targets": targets}, found, kept, time.perf_counter() - started)
            return
        if use.threat.goal == "targeted":
            batch = _with_goals(batch, cell.seed, self.data.num_classes)
        kept = min(len(batch), samples.rows_kept(batch.inputs[0].nbytes, self._job.keep_bytes))
        shards = ShardFiles(self._store.checkpoints(cell.id), digest(cell.id, targets, kept)) if len(batch) > SHARD else None
        meta["precision"] = self._job.precision
        found = evaluate_attack(
            target,
            attack,
            batch,
            use.threat,
            seed=cell.seed,
            curve=use.curve,
            fit_data=self.data.train if attack.learns else None,
            kept=kept,
            shards=shards,
            precision=self._job.precision,
        )
        seconds = time.perf_counter() - started + (shards.seconds if shards else 0.0)
        self._commit(cell, meta | {"targets": targets}, found, kept, seconds)

    def _commit(self, cell: Cell, meta: dict[str, Any], found: Evaluation, kept: int, seconds: float) -> None:
        """Write a finished attack, with what it found on the first ``kept`` samples."""
        record = samples.AttackRecord(found.outcome, found.broken_at)
        passes = [int(found.outcome.forwards.sum()), int(found.outcome.backwards.sum())]
        meta |= {"kept": kept, "passes": passes, **_spent(seconds)}
        clean = None if found.clean is None else found.clean[:kept].numpy()
        with self._store.write(cell.id, meta) as folder:
            samples.write(record, found.adversarial[:kept].numpy(), folder, clean=clean, transcripts=found.transcripts)
        self._store.discard_checkpoints([cell.id])

    def _checks(self, cell: Cell, meta: dict[str, Any], started: float) -> None:
        target, batch = self._attacked(cell)
        evidence = self._evidence(cell)
        context = CheckContext(target, batch, self._campaign.threat, evidence, cell.seed)
        findings = run_checks(context, self._campaign.checks)
        remedy = run_remedies(context, findings)
        meta["seen"] = sorted(evidence)
        meta |= {"targets": {cell.target: self._fingerprint(cell.target)}, **_spent(time.perf_counter() - started)}
        with self._store.write(cell.id, meta) as folder:
            found = {"findings": [asdict(finding) for finding in findings], "remedy": asdict(remedy) if remedy else None}
            (folder / FINDINGS).write_text(json.dumps(found, indent=1))

    def _analyse(self, cell: Cell, meta: dict[str, Any], started: float) -> None:
        use = self._campaign.analyses[cell.analysis or ""]
        target, batch = self._attacked(cell)
        analysis = self._holding(use.plugin, dict(zip(use.references, cell.needs[1:], strict=False)))
        with untouched(target.module):
            table = analysis.run(target, batch, self._campaign.threat, cell.seed)
        meta |= {"targets": {cell.target: self._fingerprint(cell.target)}, **_spent(time.perf_counter() - started)}
        with self._store.write(cell.id, meta) as folder:
            (folder / TABLE).write_text(json.dumps(asdict(table), indent=1, allow_nan=False))

    def _evidence(self, cell: Cell) -> dict[str, AttackEvidence]:
        finished = {}
        for name, need in zip(cell.attacks, cell.needs[1:], strict=True):
            entry = self._store.get(need)
            if entry is None:  # the attack failed; the checks speak about the others
                continue
            outcome, perturbed, said = samples.read(entry).outcome, samples.perturbed(entry), samples.transcripts(entry)
            use = self._campaign.attacks[name]
            attack = self._holding(use.plugin, entry.meta.get("others", {}))
            finished[name] = evidence_of(name, attack, use.threat, outcome, perturbed, said)
        return finished

    def _holding(self, plugin: _Holder, others: Mapping[str, str]) -> _Holder:
        """An attack or analysis with the targets that it refers to."""
        return plugin.with_targets({name: self._target(cell_id) for name, cell_id in others.items()}) if others else plugin

    def _target(self, cell_id: str) -> Target:
        entry = self._store.get(cell_id)
        if entry is None:
            raise TargetError(
                f"the trained target {cell_id} is missing or damaged", fix="run the campaign again: it trains it anew"
            )
        return load_target(entry.folder, self._campaign.code).to(self._device)

    def _fingerprint(self, cell_id: str) -> str:
        entry = self._store.get(cell_id)
        return str(entry.meta["fingerprint"]) if entry else ""

    def _judges(self, cell: Cell) -> dict[str, Judge]:
        """The campaign's judges, with the targets that they judge with."""
        if not cell.judges:
            return {name: use.plugin for name, use in self._campaign.judges.items()}
        key = tuple(self._fingerprint(cell_id) for cell_id in cell.judges.values())
        if self._judging is None or self._judging[0] != key:
            targets = {name: self._target(cell_id) for name, cell_id in cell.judges.items()}
            self._judging = key, {name: use.plugin.with_targets(targets) for name, use in self._campaign.judges.items()}
        return self._judging[1]

    def _attacked(self, cell: Cell) -> tuple[Any, Any]:
        """A target on the device, and the test samples with what it answers unattacked; the last few are kept."""
        seed, data = cell.seed, self.data
        key = (cell.target, self._fingerprint(cell.target), seed)
        if key not in self._ready:
            target, test = self._target(cell.target), data.test
            asked = data.modality != "images"
            if isinstance(target, GenerativeTarget) != asked:
                prompts, images = "answers no requests, and the data are prompts", "draws or writes, and the data are images"
                raise TargetError(
                    f"defense '{cell.defense}' {prompts if asked else images}",
                    fix="keep it out of the attacks and analyses by the matrix: it is there for others to use",
                )
            if isinstance(target, GenerativeTarget):
                torch.manual_seed(seed)
                batch: Any = prepare(target, test, data.test_index, self._judges(cell), benign=data.benign, device=self._device)
            else:
                batch = make_batch(test.unit(), test.labels, index=data.test_index, device=self._device)
                batch = with_clean_logits(target, batch)
            self._ready[key] = target, batch
            while len(self._ready) > 2:
                self._ready.popitem(last=False)
        self._ready.move_to_end(key)
        torch.manual_seed(seed)  # whether the target was at hand already must not show in what it draws
        return self._ready[key]


def _spent(seconds: float) -> dict[str, float]:
    """What a cell cost, for estimates; the memory is the most that its process has held since it began."""
    unit = 1 if sys.platform == "darwin" else 1024
    return {"wall_seconds": seconds, "peak_bytes": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def _with_goals(batch: Batch, seed: int, num_classes: int) -> Batch:
    """Each sample's goal: one of the wrong classes, drawn from the sample's own stream."""
    offset = 1 + SampleRng(seed, batch.index, "goals").integers((), num_classes - 1)
    return Batch(batch.inputs, batch.labels, batch.index, batch.logits, (batch.labels + offset) % num_classes)
