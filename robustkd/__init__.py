"""robustkd: does this defense hold? Robustness evaluation and robust distillation from one declarative file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustkd.api import AttackReport, EvaluationReport, attack, audit, evaluate

__all__ = ["AttackReport", "EvaluationReport", "attack", "audit", "evaluate"]


def __getattr__(name: str) -> Any:
    # Late, so that the command line and plain listing do not pay for importing torch.
    if name in __all__:
        from robustkd import api

        return getattr(api, name)
    raise AttributeError(f"module 'robustkd' has no attribute '{name}'")
