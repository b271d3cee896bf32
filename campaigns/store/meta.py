"""What is noted about a finished cell, one class a kind: the content of ``meta.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from robustkd.contracts.json_value import JsonObject, JsonValue


class Circumstances(TypedDict):
    """What is noted about every cell when it ends: the first fields of ``CellMeta``."""

    id: str
    defense: str
    seed: int
    identity: JsonObject
    device: str
    torch: str
    python: str
    wall_seconds: float
    peak_bytes: int


class CellMeta(BaseModel):
    """What is noted about every cell. Fields with a default are missing in notes of earlier versions.

    Attributes:
        identity: what the cell's id is the hash of.
        device, torch, python: where and with which versions it was made.
        wall_seconds, peak_bytes: what it took; the memory is the most that its process had held until then.
        targets: fingerprints of the targets that it was made with, by the ids of their train cells.
        files: the SHA-256 of each file of the cell, by its name. The store sets it, and when the cell was ``finished`` (UTC).
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, populate_by_name=True)

    kind: str
    id: str = ""
    defense: str
    seed: int
    identity: Mapping[str, Any] = {}
    device: str = ""
    torch: str = ""
    python: str = ""
    wall_seconds: float
    peak_bytes: int = 0
    targets: dict[str, str] = {}
    files: dict[str, str] = {}
    finished: str = ""

    @property
    def made_from(self) -> tuple[object, ...]:
        """What differs between two outcomes of one cell that are not interchangeable."""
        return (self.targets,)

    @property
    def complete(self) -> bool:
        """Whether nothing was left out that another try may bring."""
        return True

    @property
    def plugin(self) -> str:
        """The name in the campaign of the attack or the analysis; empty for the other kinds."""
        return ""

    def to_json(self) -> dict[str, JsonValue]:
        """The note; versions before this one look for ``attack`` and ``analysis`` in the note of every kind."""
        return {"attack": None, "analysis": None} | self.model_dump(by_alias=True, exclude_none=True)


class Built(BaseModel):
    """How a target was built by code of the user's own.

    Attributes:
        files: the SHA-256 of each file that the code read.
        card: the hash of the target's card.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    fingerprint: str
    files: dict[str, str] = {}
    card: str = ""


class TrainMeta(CellMeta):
    """Of a train cell.

    Attributes:
        fingerprint: the hash of the target.
        history: the metrics of each epoch.
        built: where the target is built anew in each run.
    """

    kind: Literal["train"] = "train"
    fingerprint: str
    history: list[dict[str, int | float]]
    built: Built | None = None

    @property
    def made_from(self) -> tuple[object, ...]:
        """The teachers, and what the code read."""
        return self.targets, self.built


class AttackMeta(CellMeta):
    """Of an attack cell.

    Attributes:
        others: ids of the train cells of the defenses that the attack refers to, by their names.
        kept: how many samples' perturbed inputs were kept.
        passes: forward and backward passes over all samples.
        precision: in which gradients were taken.
        benign: of a model that is asked, which harmless requests it complied with.
        harmless_alarms: of a local language model with guards, how far each harmless request is above what they let pass.
    """

    kind: Literal["attack"] = "attack"
    attack: str = ""
    others: dict[str, str] = {}
    kept: int | None = None
    passes: list[int] | None = None
    precision: str | None = None
    benign: list[bool] | None = None
    harmless_alarms: list[float] | None = None

    @property
    def plugin(self) -> str:
        """The name of the attack."""
        return self.attack


class ChecksMeta(CellMeta):
    """Of a checks cell.

    Attributes:
        seen: the attacks whose outcomes the checks looked at.
        not_run: the checks that could not be run, for a reason that may pass.
        rules: the version of the rules that made a verdict of the findings; None of the first.
        passes: forward and backward passes of the checks and their remedies, over all samples; None in former notes.
    """

    kind: Literal["checks"] = "checks"
    seen: list[str] | None = None
    rules: int | None = None
    passes: list[int] | None = None
    not_run: list[str] | None = Field(default=None, validation_alias="not run", serialization_alias="not run")

    @property
    def made_from(self) -> tuple[object, ...]:
        """The ids of the cells that this one was made from: the target and the attacks."""
        return self.targets, self.seen

    @property
    def complete(self) -> bool:
        """Whether all checks were run."""
        return not self.not_run


class AnalysisMeta(CellMeta):
    """The note of an analysis cell."""

    kind: Literal["analysis"] = "analysis"
    analysis: str = ""

    @property
    def plugin(self) -> str:
        """The name of the analysis."""
        return self.analysis


_CLASSES: dict[str, type[CellMeta]] = {"train": TrainMeta, "attack": AttackMeta, "checks": ChecksMeta, "analysis": AnalysisMeta}


def meta_from_json(content: Mapping[str, Any]) -> CellMeta:
    """The note of a cell; keys that are not known are ignored.

    Raises:
        ValueError: it is none.
    """
    return _CLASSES.get(str(content.get("kind")), CellMeta).model_validate(content)
