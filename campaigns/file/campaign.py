"""A validated campaign: its plug-ins with typed parameters, and what each is judged under."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from robustkd.campaigns.file.document.document import Exclusion, GateSpec
from robustkd.contracts import (
    Analysis,
    BaseAttack,
    Check,
    Code,
    Defense,
    Judge,
    Modality,
    ThreatModel,
    UsageError,
    suggestion,
    target_references,
)
from robustkd.contracts.json_value import JsonObject
from robustkd.contracts.plugin import Plugin
from robustkd.data import SplitParams

P = TypeVar("P", bound=Plugin)


@dataclass(frozen=True)
class PluginUse(Generic[P]):
    """A plug-in of the campaign with validated parameters.

    Attributes:
        name: what the file calls it.
        kind: the name that the plug-in is registered under.
    """

    name: str
    kind: str
    plugin: P

    @property
    def references(self) -> list[str]:
        """The defenses that must be trained first, because a parameter names their targets."""
        return target_references(self.plugin.params)


@dataclass(frozen=True)
class DefenseUse(PluginUse[Defense]):
    """A defense of the campaign.

    Attributes:
        replica: which training of the same recipe; another number means other random draws (the members of an ensemble).
    """

    replica: int = 0

    def training_seed(self, seed: int) -> int:
        """What seeds the training, in the campaign's cell of ``seed``."""
        if not self.replica:
            return seed
        return int.from_bytes(hashlib.sha256(f"{seed}/replica/{self.replica}".encode()).digest()[:8], "little") >> 1


@dataclass(frozen=True)
class AttackUse(PluginUse[BaseAttack]):
    """An attack of the campaign, the threat model it is judged under, and more eps for its accuracy curve."""

    threat: ThreatModel
    curve: tuple[float, ...]

    @property
    def references(self) -> list[str]:
        """The defenses whose targets the attack or its budget uses beside the one that it attacks."""
        return list(dict.fromkeys([*super().references, *self.threat.budget.references]))


@dataclass(frozen=True)
class AnalysisUse(PluginUse[Analysis[Any, Any]]):
    """An analysis of the campaign, and the defenses that it is made of."""

    defenses: tuple[str, ...]


@dataclass(frozen=True)
class JudgeUse(PluginUse[Judge]):
    """A judge of the campaign; the first one's verdict counts."""


@dataclass(frozen=True)
class DataUse:
    """The data block: a dataset plug-in's name and parameters, how it is split, and what kind of data it is."""

    name: str
    params: JsonObject
    split: SplitParams
    modality: Modality = "images"


@dataclass(frozen=True)
class Campaign:
    """A validated campaign.

    Attributes:
        text: the file as it was written.
        origin: where it was read from, for messages.
        folder: what relative paths in it are relative to.
        batch_size: the most samples that a model is attacked on at once; None for the default.
        groups: groups of classes by their names, each class by its name or number.
        undefended: the defenses that are none, with which the others are compared.
    """

    name: str
    text: str
    origin: str
    folder: Path
    data: DataUse
    threat: ThreatModel
    defenses: dict[str, DefenseUse]
    attacks: dict[str, AttackUse]
    analyses: dict[str, AnalysisUse]
    seeds: tuple[int, ...]
    exclude: tuple[Exclusion, ...]
    checks: tuple[Check, ...]
    gates: tuple[GateSpec, ...] = ()
    description: str = field(default="", compare=False)
    judges: dict[str, JudgeUse] = field(default_factory=dict)
    batch_size: int | None = None
    groups: Mapping[str, tuple[int | str, ...]] = field(default_factory=dict)
    undefended: tuple[str, ...] = ()

    def class_groups(self, classes: Sequence[str]) -> dict[str, frozenset[int]]:
        """The numbers of the classes of each group.

        Raises:
            UsageError: the data have no such class.
        """
        known = {name: number for number, name in enumerate(classes)}
        known |= {str(number): number for number in range(len(classes)) if str(number) not in known}
        for group, members in self.groups.items():
            if unknown := [str(member) for member in members if str(member) not in known]:
                raise UsageError(
                    f"{self.origin}: groups.{group}: the data have no class '{unknown[0]}'",
                    fix=suggestion(unknown[0], list(classes)) or f"classes are {', '.join(classes[:20])}",
                )
        return {group: frozenset(known[str(member)] for member in members) for group, members in self.groups.items()}

    @property
    def default_folder(self) -> Path:
        """Where its results are, unless somebody names another folder; relative to the working directory."""
        return Path("runs") / self.name

    @property
    def may_change(self) -> list[str]:
        """One sentence for each defense whose model may become another one behind the same identity."""
        told = ((name, use.plugin.may_change) for name, use in self.defenses.items())
        return [f"{name}: {sentence}" for name, sentence in told if sentence]

    @property
    def code(self) -> list[Code]:
        """The code that it names, which its targets' cards may call."""
        return [code for use in self.defenses.values() for code in use.plugin.code()]

    def excluded(self, defense: str, attack: str) -> bool:
        """Whether the matrix leaves this pair out."""
        return any(item.defense in (None, defense) and item.attack in (None, attack) for item in self.exclude)
