"""Attacks around another attack: how the inner one is written down, and what a wrapper takes over from it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

from robustkd import plugins
from robustkd.contracts import (
    Arrays,
    Attack,
    AttackResult,
    BaseTarget,
    Batch,
    Capabilities,
    Capability,
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

    def make(self) -> Attack:
        """The attack."""
        attack: Attack = super().make()
        return attack


class Wrapper(Attack):
    """An attack around ``params.attack``: whatever is true of the one inside is true of this one.

    A subclass says how the one inside sees the target.
    """

    norms = ("linf", "l2", "l1", "l0")
    goals = ("untargeted", "targeted")

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.inner: Attack = self.params.attack.make()
        self.version = f"{type(self).version}/{self.inner.version}"  # its numbers change when those of either do

    @property
    def traits(self) -> Traits:
        """Those of the wrapped attack; it also averages over passes where the wrapper does."""
        inner = self.inner.traits
        return replace(inner, averages=inner.averages or self.averages)

    @property
    def loss_family(self) -> LossFamily:
        """That of the wrapped attack."""
        return self.inner.traits.loss_family

    def threat_for(self, threat: ThreatModel) -> ThreatModel:
        """That of the wrapped attack."""
        return self.inner.threat_for(threat)

    def refusal(self, threat: ThreatModel) -> str | None:
        """That of the wrapped attack."""
        return self.inner.refusal(threat)

    def missing(self, capabilities: Capabilities) -> list[Capability]:
        """What the wrapped attack misses."""
        return self.inner.missing(capabilities)

    def files(self) -> list[Path]:
        """Those of the wrapped attack."""
        return self.inner.files()

    def minimises(self, threat: ThreatModel) -> Norm:
        """What the wrapped attack minimises."""
        return self.inner.minimises(threat)

    def with_targets(self, targets: Mapping[str, BaseTarget]) -> Self:
        """The wrapped attack is who refers to them."""
        return self._around(self.inner.with_targets(targets))

    def fit(self, target: Target, data: Arrays, threat: ThreatModel, rng: SampleRng) -> Self:
        """Fit the wrapped attack."""
        with self.seen(target) as seen:
            return self._around(self.inner.fit(seen, data, threat, rng))

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Run the wrapped attack."""
        with self.seen(target) as seen:
            return self.inner.run(seen, batch, threat, rng)

    @abstractmethod
    def seen(self, target: Target) -> AbstractContextManager[Target]:
        """The target as the wrapped attack sees it, inside the block."""

    def _around(self, inner: Attack) -> Self:
        other = copy(self)
        other.inner = inner
        return other
