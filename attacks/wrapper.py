"""Attacks around another attack: how the inner one is written down, and what a wrapper takes over from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import WithJsonSchema

from robustkd import plugins
from robustkd.contracts import Attack, ThreatModel
from robustkd.contracts.attack import LossFamily
from robustkd.contracts.threat import Norm
from robustkd.nested import PluginSpec


class AttackSpec(PluginSpec):
    """An attack by its kind, with its parameters."""

    group: ClassVar[plugins.Group] = "attacks"

    def make(self) -> Attack:
        """The attack."""
        attack: Attack = super().make()
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
