"""Budgets that say how an image changes: one file each."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeAlias

from robustkd.contracts.image_changes.change import PARAMETERS, ImageChange, TransformBudget
from robustkd.contracts.image_changes.colour import ColourBudget, ColourSpace
from robustkd.contracts.image_changes.flow import FlowBudget
from robustkd.contracts.image_changes.perceptual import PerceptualBudget
from robustkd.contracts.image_changes.spatial import Padding, SpatialBudget

__all__ = [
    "PARAMETERS",
    "Change",
    "ColourBudget",
    "ColourSpace",
    "FlowBudget",
    "ImageChange",
    "Padding",
    "PerceptualBudget",
    "SpatialBudget",
    "TransformBudget",
    "stored_change",
]

Change: TypeAlias = SpatialBudget | FlowBudget | ColourBudget | PerceptualBudget
"""A budget that says how an image changes."""

_KINDS: dict[str, type[Change]] = {
    budget.kind: budget for budget in (SpatialBudget, FlowBudget, ColourBudget, PerceptualBudget)
}
_READ: dict[str, Callable[[str], object]] = {
    "float": float,
    "int": int,
    "tuple[str, ...]": lambda text: tuple(filter(None, text.split("+"))),
}


def stored_change(measure: str, eps: float) -> Change | None:
    """The budget that results file under this measure (``ImageChange.measure``); None where it is none of these."""
    written = re.fullmatch(r"(\w+)\((.*)\)", measure)
    if not written or written[1] not in _KINDS:
        return None
    kind = _KINDS[written[1]]
    values = dict(item.partition("=")[::2] for item in written[2].split(",") if item)
    types = {part.name: str(part.type) for part in fields(kind)}
    given: dict[str, Any] = {name: _READ.get(types.get(name, ""), str)(value) for name, value in values.items()}
    return kind(eps=eps, **given)
