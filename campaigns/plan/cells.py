"""The units of work. A cell is small, frozen and travels to another process as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

CellKind = Literal["train", "attack", "checks", "analysis"]


@dataclass(frozen=True)
class Cell:
    """One unit of work of a campaign.

    Attributes:
        id: hash of everything that decides its outcome.
        kind: train a defense, attack it, run the checks on it or an analysis of it.
        defense, seed: of which defense.
        attack: which attack, for an attack cell.
        needs: ids of the cells that must be finished first; of an attack cell its target's, then those of the defenses that
            the attack refers to. A checks cell may also run when some of its attacks failed.
        analysis: which analysis, for an analysis cell.
        attacks: of a checks cell, the names of the attacks whose ids follow the target's in ``needs``.
        judges: ids of the train cells whose targets the campaign's judges judge with, by the defenses' names.
        target: the id of the train cell whose target is used (its own id for a train cell).
        identity: what ``id`` is the hash of, each part by its name; noted with the result, so that a change can be told later.
    """

    id: str
    kind: CellKind
    defense: str
    seed: int
    needs: tuple[str, ...]
    target: str
    attack: str | None = None
    attacks: tuple[str, ...] = ()
    analysis: str | None = None
    judges: Mapping[str, str] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def title(self) -> str:
        """For people: ``mtard × pgd · seed 0``."""
        what = {"train": "train", "checks": "checks", "attack": f"× {self.attack}", "analysis": self.analysis}[self.kind]
        return f"{self.defense} {what} · seed {self.seed}"
