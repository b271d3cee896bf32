"""The blocks of a campaign file beside the threat, and the whole of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from robustkd.campaigns.file.document.block import Name, PluginBlock
from robustkd.campaigns.file.document.threat import ThreatSpec
from robustkd.contracts.check import Level
from robustkd.contracts.params import Settings


class DefenseBlock(Settings):
    """What may be said about every defense, beside the parameters of its plug-in."""

    replica: int = Field(0, ge=0, description="another number: the same recipe trained with other random draws")


class AnalysisBlock(Settings):
    """What must be said about every analysis, beside the parameters of its plug-in."""

    defenses: tuple[str, ...] = Field(min_length=1, description="the defenses that it is made of")


class Exclusion(Settings):
    """A pair that is not run; a missing side means all."""

    defense: str | None = None
    attack: str | None = None


class Matrix(Settings):
    """The ``matrix`` block of a campaign file."""

    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field((0,), min_length=1)
    exclude: tuple[Exclusion, ...] = ()


class GateSpec(Settings):
    """One of the ``gates``: a bound on a metric of a defense, that its interval must clear."""

    defense: str
    metric: Literal["robust_accuracy", "clean_accuracy"] = "robust_accuracy"
    at_least: float = Field(ge=0, le=1)


class ChecksSpec(Settings):
    """The ``checks`` block; a bare word is its level."""

    level: Level | Literal["none"] = "standard"
    samples: int | None = Field(None, ge=2, description="samples that each check looks at, at most")


def _level_alone(value: Any) -> Any:
    return {"level": value} if isinstance(value, str) else value


def _name_alone(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Document(Settings):
    """The whole campaign file."""

    version: Literal[1]
    name: Name
    description: str = ""
    data: dict[str, Any]
    threat: ThreatSpec
    defenses: dict[Name, PluginBlock] = Field(min_length=1)
    attacks: dict[Name, PluginBlock] = Field(min_length=1)
    analyses: dict[Name, PluginBlock] = Field({})
    judges: dict[Name, PluginBlock] = Field({})
    matrix: Matrix = Matrix()
    checks: Annotated[ChecksSpec, BeforeValidator(_level_alone)] = ChecksSpec()
    gates: tuple[GateSpec, ...] = ()
    groups: dict[Name, Annotated[tuple[int | str, ...], Field(min_length=1)]] = Field(
        {}, description="groups of classes, by name or number, the worst of which is told beside the worst class"
    )
    undefended: (
        Annotated[tuple[str, ...], BeforeValidator(_name_alone, json_schema_input_type=str | tuple[str, ...])] | None
    ) = Field(
        None,
        description="the defenses that are none, such as a network as it was found: the others hold only if they are better; "
        "default: those that train without a defense (standard, lm-pretrain, ..)",
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        description="the most samples that a model is attacked on at once; only what a random model draws depends on it",
    )
