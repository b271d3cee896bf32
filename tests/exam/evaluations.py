"""The evaluations whose verdicts are examined, by how hard they try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Strength = Literal["weak", "usual", "strong"]
AUTOATTACK = {"kind": "autoattack", "version": "adaptive"}


@dataclass(frozen=True)
class Evaluation:
    """A list of attacks, as ``robustkd.audit`` takes it; ``attacks`` None are its default ones."""

    strength: Strength
    attacks: Sequence[Any] | None = None


EVALUATIONS: dict[str, Evaluation] = {
    "fgsm": Evaluation("weak", ["fgsm"]),
    "square": Evaluation("weak", [{"kind": "square", "queries": 300}]),
    "pgd": Evaluation("usual", ["pgd"]),
    "usual": Evaluation("usual"),
    "strong": Evaluation(
        "strong",
        [AUTOATTACK, {"kind": "pgd", "loss": "margin", "steps": 40, "restarts": 3}, {"kind": "square", "queries": 1000}],
    ),
}
