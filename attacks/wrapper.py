"""Attacks around another attack: how the inner one is written down, and what a wrapper takes over from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from robustkd import plugins
from robustkd.contracts import Attack, Params, PluginError, ThreatModel
from robustkd.contracts.attack import LossFamily
from robustkd.contracts.threat import Norm


class AttackSpec(BaseModel):
    """An attack by its ``kind``, with validated parameters: ``pgd``, or ``{kind: pgd, steps: 40}``."""

    model_config = ConfigDict(frozen=True)
    kind: str
    params: SerializeAsAny[Params]

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, AttackSpec):
            return value
        rest = {"kind": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
        kind = rest.pop("kind", None)
        if not isinstance(kind, str):
            raise ValueError("write an attack's kind, or a mapping of its kind and its parameters")
        try:
            params = plugins.load("attacks", kind).Params.model_validate(rest, context=info.context)
        except PluginError as error:
            raise ValueError(f"{error.message} ({error.fix})") from None
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"attack '{kind}': {key}: {first['msg'].removeprefix('Value error, ')}") from None
        return {"kind": kind, "params": params}

    @model_serializer
    def _write(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.params.model_dump(mode="json")}

    def make(self) -> Attack:
        """The attack."""
        attack: Attack = plugins.load("attacks", self.kind)(self.params)
        return attack


InnerAttack = Annotated[AttackSpec, WithJsonSchema({"type": "attack"})]
"""A parameter type: another attack."""


class Wrapper(Attack):
    """An attack around ``params.attack``: whatever is true of the one inside is true of this one, unless a subclass says not."""

    norms = ("linf", "l2", "l1", "l0")
    goals = ("untargeted", "targeted")

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.inner: Attack = self.params.attack.make()
        traits = ("kind", "norms", "goals", "space", "gradients", "iterative")
        vars(self).update({name: getattr(self.inner, name) for name in traits})
        vars(self)["version"] = f"{type(self).version}/{self.inner.version}"  # its numbers change when those of either do

    @property
    def loss_family(self) -> LossFamily:
        """That of the wrapped attack."""
        return self.inner.loss_family

    def refusal(self, threat: ThreatModel) -> str | None:
        """That of the wrapped attack."""
        return self.inner.refusal(threat)

    def files(self) -> list[Path]:
        """Those of the wrapped attack."""
        return self.inner.files()

    def minimises(self, threat: ThreatModel) -> Norm:
        """What the wrapped attack minimises."""
        return self.inner.minimises(threat)
