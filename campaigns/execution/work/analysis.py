"""The work of an analysis cell: analyse a trained defense."""

from __future__ import annotations

import json
from dataclasses import asdict

from robustkd.campaigns.execution.workspace import Clock, Workspace
from robustkd.campaigns.plan.cells import AnalysisCell
from robustkd.campaigns.results.findings import TABLE
from robustkd.campaigns.store.meta import AnalysisMeta
from robustkd.targets import untouched


def analyse(cell: AnalysisCell, workspace: Workspace) -> None:
    """Run an analysis on a target and write its table to the store."""
    clock = Clock()
    use = workspace.campaign.analyses[cell.analysis]
    target, batch = workspace.attacked(cell)
    analysis = workspace.with_others(use.plugin, cell.others, cell.seed)
    with untouched(target.module):
        table = analysis.run(target, batch, workspace.with_perceptual_features(workspace.campaign.threat, cell), cell.seed)
    meta = AnalysisMeta(
        **workspace.circumstances(cell, clock.seconds),
        analysis=cell.analysis,
        targets=workspace.fingerprints(cell.target),
    )
    with workspace.store.write(cell.id, meta) as folder:
        (folder / TABLE).write_text(json.dumps(asdict(table), indent=1, allow_nan=False))
