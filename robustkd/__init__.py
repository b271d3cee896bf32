"""robustkd: does this defense hold? Robustness evaluation and robust distillation from one declarative file.

What is named here is public, and so are ``robustkd.contracts`` and ``robustkd.plugins``; docs/what-you-may-import.md says what that means.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustkd import contracts, plugins
    from robustkd.api import AttackReport, EvaluationReport, attack, audit, evaluate
    from robustkd.application.campaign import compare, load, report, run, samples
    from robustkd.application.progress import Progress
    from robustkd.application.trained import load_model
    from robustkd.campaigns.comparison.compare import ComparedCampaigns
    from robustkd.evaluation.judge_audit import JudgeAudit
    from robustkd.evaluation.prompt_reports import PromptAttackReport, PromptEvaluationReport
    from robustkd.prompt_api import audit_judges
    from robustkd.scoring.results import Results

    __version__: str

_HOMES = {
    "robustkd.api": ("AttackReport", "EvaluationReport", "attack", "audit", "evaluate"),
    "robustkd.application.campaign": ("compare", "load", "report", "run", "samples"),
    "robustkd.application.progress": ("Progress",),
    "robustkd.application.trained": ("load_model",),
    "robustkd.campaigns.comparison.compare": ("ComparedCampaigns",),
    "robustkd.evaluation.prompt_reports": ("PromptAttackReport", "PromptEvaluationReport"),
    "robustkd.evaluation.judge_audit": ("JudgeAudit",),
    "robustkd.prompt_api": ("audit_judges",),
    "robustkd.scoring.results": ("Results",),
}

__all__ = [
    "AttackReport",
    "ComparedCampaigns",
    "EvaluationReport",
    "JudgeAudit",
    "Progress",
    "PromptAttackReport",
    "PromptEvaluationReport",
    "Results",
    "__version__",
    "attack",
    "audit",
    "audit_judges",
    "compare",
    "contracts",
    "evaluate",
    "load",
    "load_model",
    "plugins",
    "report",
    "run",
    "samples",
]


def __getattr__(name: str) -> Any:
    # Late, so that the command line and plain listing do not pay for importing torch.
    if name == "__version__":
        from importlib.metadata import version

        return version("robustkd")
    if name in ("contracts", "plugins"):
        return importlib.import_module(f"robustkd.{name}")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'robustkd' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
