"""Attacks around another attack: the parameter that names the inner one, and what a wrapper takes over from it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field
from typing_extensions import override

from robustkd import plugins
from robustkd.contracts import (
    Arrays,
    Attack,
    AttackResult,
    BaseTarget,
    Batch,
    Capabilities,
    Capability,
    Params,
    Target,
    ThreatModel,
    Traits,
)
from robustkd.contracts.attack import LossFamily
from robustkd.contracts.random import SampleRng
from robustkd.contracts.threat import Norm
from robustkd.plugins.nested import PluginSpec


class AttackSpec(PluginSpec):
    """An attack by its kind, with its parameters; the type of a parameter that is another attack."""

    group: ClassVar[plugins.Group] = "attacks"

    @override
    def make(self) -> Attack:
        attack: Attack = super().make()
        return attack


class WrapperParams(Params):
    """The attack that is wrapped."""

    attack: AttackSpec = Field(
        {"kind": "pgd"}, validate_default=True, description="the attack to wrap: its kind and parameters"
    )


class Wrapper(Attack):
    """An attack around ``params.attack``. Unless it says otherwise, what is true of the wrapped attack is true of the wrapper.

    A subclass implements ``wrapped_target``.
    """

    norms = ("linf", "l2", "l1", "l0")
    goals = ("untargeted", "targeted")

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.inner: Attack = self.params.attack.make()
        self.version = f"{type(self).version}/{self.inner.version}"  # its numbers change when those of either do
        self.knows_rejection = self.knows_rejection and self.inner.knows_rejection
        self.uses_surrogates = self.uses_surrogates or self.inner.uses_surrogates

    @override
    def version_for(self, threat: ThreatModel) -> str:
        return f"{type(self).version}/{self.inner.version_for(threat)}"

    @override
    def others(self) -> dict[str, Capabilities]:
        return self.inner.others()

    @property
    def traits(self) -> Traits:
        """The traits of the wrapped attack, which averages over passes also where the wrapper does."""
        inner = self.inner.traits
        return replace(inner, averages=inner.averages or self.averages)

    @property
    @override
    def loss_family(self) -> LossFamily:
        return self.inner.traits.loss_family

    @override
    def threat_for(self, threat: ThreatModel) -> ThreatModel:
        return self.inner.threat_for(threat)

    @override
    def refusal(self, threat: ThreatModel) -> str | None:
        return self.inner.refusal(threat)

    @override
    def missing(self, capabilities: Capabilities) -> list[Capability]:
        return self.inner.missing(capabilities)

    @override
    def files(self) -> list[Path]:
        return self.inner.files()

    @override
    def minimises(self, threat: ThreatModel) -> Norm:
        return self.inner.minimises(threat)

    @override
    def with_targets(self, targets: Mapping[str, BaseTarget]) -> Self:
        return self._around(self.inner.with_targets(targets))

    @override
    def fit(self, target: Target, data: Arrays, threat: ThreatModel, rng: SampleRng) -> Self:
        with self.wrapped_target(target) as wrapped:
            return self._around(self.inner.fit(wrapped, data, threat, rng))

    @override
    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        with self.wrapped_target(target) as wrapped:
            return self.inner.run(wrapped, batch, threat, rng)

    @abstractmethod
    def wrapped_target(self, target: Target) -> AbstractContextManager[Target]:
        """The target that the wrapped attack is run on, inside the block."""

    def _around(self, inner: Attack) -> Self:
        wrapper = copy(self)
        wrapper.inner = inner
        return wrapper
