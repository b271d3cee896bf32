"""What happens inside a cell: train, attack, check or analyse, and write the outcome to the store. Runs in a child process."""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from robustkd.campaigns.execution.job import Job, Report
from robustkd.campaigns.execution.torchrun import train_together
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan.cells import Cell
from robustkd.campaigns.plan.changes import differences
from robustkd.campaigns.plan.plan import CellMaker
from robustkd.campaigns.results.collect import FINDINGS, TABLE
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.identity import content_hash, digest, relative
from robustkd.campaigns.store.shards import ShardFiles
from robustkd.campaigns.store.store import Store
from robustkd.contracts import (
    Analysis,
    Attack,
    AttackEvidence,
    Batch,
    CheckContext,
    FitContext,
    GenerativeTarget,
    IdentityError,
    Judge,
    PromptAttack,
    PromptBatch,
    StoreError,
    Target,
    TargetError,
)
from robustkd.contracts.random import SampleRng
from robustkd.data import Splits, load_splits
from robustkd.evaluation.checks import run_checks, run_remedies
from robustkd.evaluation.images import SHARD, Evaluation, evaluate_attack, evidence_of, make_batch, with_clean_logits
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from robustkd.lazy import torch
from robustkd.plugins.sources import files_read
from robustkd.targets import load_target, recording_gradients, save_target, untouched
from robustkd.targets.files import fingerprint, fingerprint_of_built

_Holder = TypeVar("_Holder", Attack, Analysis)


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
        self._makes: CellMaker | None = None
        self._ready: OrderedDict[tuple[str, str, int], tuple[Target, Any]] = OrderedDict()
        self._judging: tuple[tuple[str, ...], dict[str, Judge]] | None = None

    @property
    def data(self) -> Splits:
        """The campaign's data, loaded once."""
        if self._data is None:
            block = self._campaign.data
            self._data = load_splits(block.name, block.params, block.split)
        return self._data

    @recording_gradients()
    def run(self, cell: Cell) -> None:
        """Do a cell whose needs are in the store, and write it there.

        Raises:
            IdentityError: plug-ins, files or data are not those that the cell was planned with.
        """
        self._maker.forget()
        self._compare(cell, self._maker.again(cell))
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
        rebuilt = use.plugin.rebuilt
        context = FitContext(
            train=data.train,
            validation=data.validation,
            input_shape=data.input_shape,
            num_classes=data.num_classes,
            threat=self._campaign.threat,
            seed=use.training_seed(cell.seed),
            device=self._device,
            checkpoints=self._store.checkpoints(cell.id),
            targets={name: self._target(name, teacher, cell.seed) for name, teacher in teachers.items()},
            log=log,
        )
        meta["targets"] = {teacher: self._fingerprint(teacher) for teacher in cell.needs}
        with files_read() as read:
            target = use.plugin.fit(context)
        target.module.eval()
        if use.plugin.files():
            self._maker.forget()
            self._compare(cell, self._maker.again(cell))  # they may have changed while it read them
        if not self._writes:
            return
        meta |= {"fingerprint": fingerprint_of_built(target) if rebuilt else fingerprint(target), "history": history}
        if rebuilt:
            files = {relative(file, self._campaign.folder): content_hash(file) for file in read}
            meta["built"] = {"fingerprint": meta["fingerprint"], "files": files, "card": digest(target.card())}
        meta |= _spent(time.perf_counter() - started)
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
        attack = self._holding(use.plugin, meta["others"], cell.seed)
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
        if unrun := [finding.name for finding in findings if finding.again]:
            meta["not run"] = unrun
        meta |= {"targets": {cell.target: self._fingerprint(cell.target)}, **_spent(time.perf_counter() - started)}
        with self._store.write(cell.id, meta) as folder:
            found = {"findings": [asdict(finding) for finding in findings], "remedy": asdict(remedy) if remedy else None}
            (folder / FINDINGS).write_text(json.dumps(found, indent=1))

    def _analyse(self, cell: Cell, meta: dict[str, Any], started: float) -> None:
        use = self._campaign.analyses[cell.analysis or ""]
        target, batch = self._attacked(cell)
        analysis = self._holding(use.plugin, dict(zip(use.references, cell.needs[1:], strict=False)), cell.seed)
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
            attack = self._holding(use.plugin, entry.meta.get("others", {}), cell.seed)
            finished[name] = evidence_of(name, attack, use.threat, outcome, perturbed, said)
        return finished

    def _holding(self, plugin: _Holder, others: Mapping[str, str], seed: int) -> _Holder:
        """An attack or analysis with the targets that it refers to."""
        targets = {name: self._target(name, cell_id, seed) for name, cell_id in others.items()}
        return plugin.with_targets(targets) if targets else plugin

    def _compare(self, planned: Cell, seen: Cell, subject: str = "") -> None:
        """Refuse a cell that this process sees otherwise than it was planned."""
        if seen.id == planned.id:
            return
        use = self._campaign.defenses.get(planned.defense) if planned.kind == "train" else None
        known = planned.identity.get("plugin", {}).get("params", {}).get("files", ())
        changed = [file.name for file in use.plugin.files() if content_hash(file) not in known] if use else []
        said = f"{' and '.join(changed)} changed" if changed else "; ".join(differences(planned.identity, seen))
        raise IdentityError(
            f"'{subject or planned.attack or planned.analysis or planned.defense}' is not what the campaign was planned with: {said}",
            fix="leave files as they are while a campaign runs, install the same packages wherever its cells run, and run it again",
        )

    def _target(self, name: str, cell_id: str, seed: int) -> Target:
        entry = self._store.get(cell_id)
        if entry is None:
            raise TargetError(
                f"the trained target {cell_id} is missing or damaged", fix="run the campaign again: it trains it anew"
            )
        if name in self._campaign.defenses and self._campaign.defenses[name].plugin.rebuilt:
            seen = self._maker.target(name, seed)  # its code runs again where it is loaded
            self._compare(replace(seen, id=cell_id, identity=entry.meta["identity"]), seen)
        return load_target(entry.folder, self._campaign.code).to(self._device)

    def _fingerprint(self, cell_id: str) -> str:
        entry = self._store.get(cell_id)
        return str(entry.meta["fingerprint"]) if entry else ""

    @property
    def _maker(self) -> CellMaker:
        if self._makes is None:
            self._makes = CellMaker(self._campaign, self.data)
        return self._makes

    def _judges(self, cell: Cell) -> dict[str, Judge]:
        """The campaign's judges, with the targets that they judge with."""
        if not cell.judges:
            return {name: use.plugin for name, use in self._campaign.judges.items()}
        key = tuple(self._fingerprint(cell_id) for cell_id in cell.judges.values())
        if self._judging is None or self._judging[0] != key:
            targets = {name: self._target(name, cell_id, cell.seed) for name, cell_id in cell.judges.items()}
            self._judging = key, {name: use.plugin.with_targets(targets) for name, use in self._campaign.judges.items()}
        return self._judging[1]

    def _attacked(self, cell: Cell) -> tuple[Any, Any]:
        """A target on the device, and the test samples with what it answers unattacked; the last few are kept."""
        seed, data = cell.seed, self.data
        key = (cell.target, self._fingerprint(cell.target), seed)
        if key not in self._ready:
            target, test = self._target(cell.defense, cell.target, seed), data.test
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
