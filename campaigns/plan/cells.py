"""The units of work. A cell is small, frozen and travels to another process as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from robustkd.contracts.json_value import JsonObject, JsonValue

CellKind = Literal["train", "attack", "checks", "analysis"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One unit of work of a campaign; each kind is a class of its own.

    Attributes:
        id: hash of everything that decides its outcome.
        defense, seed: of which defense.
        target: id of the train cell whose target is used (its own id for a train cell).
        others: ids of the train cells of the defenses that its plug-in refers to, by their names.
        judges: ids of the train cells whose targets the campaign's judges judge with, by the defenses' names.
        identity: what ``id`` is the hash of, each part by its name; noted with the result, so that a change can be told later.
    """

    kind: ClassVar[CellKind]

    id: str
    defense: str
    seed: int
    target: str
    others: Mapping[str, str] = field(default_factory=dict)
    judges: Mapping[str, str] = field(default_factory=dict)
    identity: JsonObject = field(default_factory=dict, compare=False, repr=False)

    @property
    def plugin(self) -> str:
        """The name in the campaign of the attack or the analysis; empty for a train or a checks cell."""
        return ""

    @property
    def required(self) -> tuple[str, ...]:
        """Ids of the cells without which it cannot run."""
        return (self.target, *self.others.values(), *self.judges.values())

    @property
    def needs(self) -> tuple[str, ...]:
        """Ids of the cells that must have ended before it runs, whether with an outcome or, where not ``required``, without."""
        return self.required

    @property
    def trained(self) -> dict[str, str]:
        """Ids of all train cells that it uses, by defense."""
        return {**self.others, **self.judges, self.defense: self.target}

    @property
    def title(self) -> str:
        """For people: ``mtard × pgd · seed 0``."""
        return f"{self.defense} {self.plugin or self.kind} · seed {self.seed}"

    def to_json(self) -> dict[str, JsonValue]:
        """The cell as JSON; ``from_json`` is its inverse."""
        return {"kind": self.kind, **asdict(self)}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Cell:
        """The cell that ``to_json`` made the content of."""
        classes: dict[str, type[Cell]] = {known.kind: known for known in (TrainCell, AttackCell, ChecksCell, AnalysisCell)}
        return classes[content["kind"]](**{name: value for name, value in content.items() if name != "kind"})


@dataclass(frozen=True, kw_only=True)
class TrainCell(Cell):
    """A cell that trains a defense with one seed."""

    kind = "train"

    @property
    def required(self) -> tuple[str, ...]:
        """The train cells of the defenses that it refers to, such as teachers."""
        return tuple(self.others.values())


@dataclass(frozen=True, kw_only=True)
class AttackCell(Cell):
    """Attack a trained defense with ``attack``.

    ``certificates`` are the ids of the analyses' cells, by name, that certify samples which it then leaves alone.
    """

    kind = "attack"
    attack: str
    certificates: Mapping[str, str] = field(default_factory=dict)

    @property
    def plugin(self) -> str:
        """The name of the attack."""
        return self.attack

    @property
    def needs(self) -> tuple[str, ...]:
        """Beside what is required the certificates: without them it attacks every sample."""
        return (*self.required, *self.certificates.values())

    @property
    def title(self) -> str:
        """For people: ``mtard × pgd · seed 0``."""
        return f"{self.defense} × {self.attack} · seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class ChecksCell(Cell):
    """Run the checks on a trained defense, after its ``attacks``: ids of their cells by the attacks' names."""

    kind = "checks"
    attacks: Mapping[str, str]

    @property
    def required(self) -> tuple[str, ...]:
        """The target and what its budget is measured by: checks also run when attacks have failed."""
        return (self.target, *self.others.values())

    @property
    def needs(self) -> tuple[str, ...]:
        """These and the attacks, whose outcomes the checks look at."""
        return (*self.required, *self.attacks.values())


@dataclass(frozen=True, kw_only=True)
class AnalysisCell(Cell):
    """Run ``analysis`` on a trained defense."""

    kind = "analysis"
    analysis: str

    @property
    def plugin(self) -> str:
        """The name of the analysis."""
        return self.analysis
