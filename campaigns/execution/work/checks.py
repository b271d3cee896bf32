"""Run the checks on a trained defense."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from robustkd.campaigns.execution.workspace import Clock, Workspace
from robustkd.campaigns.plan.cells import ChecksCell
from robustkd.campaigns.results.findings import FINDINGS
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.meta import AttackMeta, ChecksMeta, TrainMeta
from robustkd.contracts import AttackEvidence, BaseTarget, CheckContext, Finding
from robustkd.evaluation.checks import run_checks, run_remedies
from robustkd.evaluation.images import evidence_of
from robustkd.scoring.remedy import Remedy
from robustkd.scoring.verdict import RULES


def check(cell: ChecksCell, workspace: Workspace) -> None:
    """Run the campaign's checks on a target and write their findings to the store."""
    clock = Clock()
    target, batch = workspace.attacked(cell)
    evidence = _evidence(cell, workspace)
    threat, modality = workspace.with_perceptual_features(workspace.campaign.threat, cell), workspace.modality
    batch = modality.checked(batch, threat, seed=cell.seed, num_classes=workspace.data.num_classes)
    judges = workspace.judges(cell) if modality.needs_judges else {}
    context = CheckContext(target, batch, threat, evidence, cell.seed, _Teachers(cell, workspace), judges)
    findings = run_checks(context, workspace.campaign.checks)
    size = workspace.job.batch_size or modality.usual_batch_size(target, batch)
    remedy = run_remedies(context, findings, batch_size=size)
    meta = ChecksMeta(
        **workspace.circumstances(cell, clock.seconds),
        targets=workspace.fingerprints(cell.target),
        seen=sorted(evidence),
        not_run=[finding.name for finding in findings if finding.again] or None,
        rules=RULES,
        passes=_passes(findings, remedy),
    )
    with workspace.store.write(cell.id, meta) as folder:
        found = {"findings": [asdict(finding) for finding in findings], "remedy": asdict(remedy) if remedy else None}
        (folder / FINDINGS).write_text(json.dumps(found, indent=1))


def _passes(findings: Sequence[Finding], remedy: Remedy | None) -> list[int]:
    spent: list[Finding | Remedy] = [*findings, *([remedy] if remedy else [])]
    return [sum(one.forward_passes for one in spent), sum(one.backward_passes for one in spent)]


class _Teachers(Mapping[str, BaseTarget]):
    """The targets that the attacked one was made from, by their defenses' names; without those that the store has no more.

    Each is loaded when it is asked for: most checks want none.
    """

    def __init__(self, cell: ChecksCell, workspace: Workspace) -> None:
        made = workspace.store.get(cell.target)
        entries = [workspace.store.get(cell_id) for cell_id in made.noted(TrainMeta).targets] if made else []
        self._ids = {entry.meta.defense: entry.meta.id for entry in entries if entry}
        self._seed, self._workspace = cell.seed, workspace

    def __getitem__(self, name: str) -> BaseTarget:
        return self._workspace.bounded(name, self._ids[name], self._seed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


def _evidence(cell: ChecksCell, workspace: Workspace) -> dict[str, AttackEvidence]:
    """What the attacks did, by their names; without those that failed: the checks speak about the others."""
    finished = {}
    for name, attack_cell in cell.attacks.items():
        if (entry := workspace.store.get(attack_cell)) is None:
            continue
        outcome, perturbed, said = samples.read(entry).outcome, samples.perturbed(entry), samples.transcripts(entry)
        use = workspace.campaign.attacks[name]
        attack = workspace.with_others(use.plugin, entry.noted(AttackMeta).others, cell.seed)
        finished[name] = evidence_of(name, attack, use.threat, outcome, perturbed, said)
    return finished
