"""What was run, for the set-up of a report: from the campaign, and from the record of its results folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from robustkd.campaigns.comparison.gate import judge_gates
from robustkd.campaigns.execution import record
from robustkd.campaigns.file.campaign import AttackUse, Campaign, DefenseUse
from robustkd.contracts.json_value import JsonValue
from robustkd.redaction import redacted
from robustkd.reporting.set_up import LastRun, SetUp, last_run
from robustkd.scoring.results import Results


def set_up(campaign: Campaign, folder: Path, results: Results) -> SetUp:
    """The set-up of a campaign whose results lie in ``folder``."""
    return SetUp(
        campaign_file=redacted(campaign.text),
        gates=[gate.sentence for gate in judge_gates(campaign.gates, results)],
        defenses=parameters(campaign.defenses),
        run=_last_run(folder),
    )


def parameters(uses: Mapping[str, DefenseUse] | Mapping[str, AttackUse]) -> dict[str, dict[str, JsonValue]]:
    """Of each defense or attack its ``kind`` and its parameters."""
    return {name: {"kind": use.kind, **use.plugin.params.model_dump(mode="json")} for name, use in uses.items()}


def _last_run(folder: Path) -> LastRun | None:
    ended = [execution for execution in record.history(folder / record.RECORD) if execution.finished]
    last = ended[-1] if ended else None
    return last_run(last.command, last.git, last.finished or "", last.packages) if last else None
