"""What attacks, analyses and judges have in common: parameters that may refer to defenses of the same campaign."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, overload

from robustkd.contracts.capability import Capabilities
from robustkd.contracts.errors import UsageError
from robustkd.contracts.params import target_references
from robustkd.contracts.plugin import Plugin
from robustkd.contracts.target import BaseTarget, Kind, of_kind


class TargetHolder(Plugin):
    """A plug-in that is handed the finished targets of the defenses that its parameters refer to (``TargetRef``), same seed.

    Attributes:
        needs_of_others: what it asks of those targets; a campaign that names one without is refused before anything is run.
        targets: what it was handed, by the defenses' names.
    """

    needs_of_others: ClassVar[Capabilities] = frozenset()

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.targets: Mapping[str, BaseTarget] = {}

    def with_targets(self, targets: Mapping[str, BaseTarget]) -> Self:
        """A copy of the plug-in that holds ``targets``."""
        holding = copy.copy(self)
        holding.targets = dict(targets)
        return holding

    def others(self) -> dict[str, Capabilities]:
        """What it asks of each target that its parameters refer to, by the defenses' names."""
        return dict.fromkeys(target_references(self.params), self.needs_of_others)

    @overload
    def target(self, name: str) -> BaseTarget: ...

    @overload
    def target(self, name: str, kind: type[Kind]) -> Kind: ...

    def target(self, name: str, kind: type[BaseTarget] = BaseTarget) -> BaseTarget:
        """The target called ``name`` that was handed over.

        Raises:
            UsageError: none was, or it is not of the type ``kind``.
        """
        if name not in self.targets:
            raise UsageError(
                f"'{self.name}' refers to '{name}', which was not handed over",
                fix="in a campaign, name a defense of the same file; in Python, pass models={" + repr(name) + ": a network}",
            )
        return of_kind(self.targets[name], name, kind)

    def files(self) -> list[Path]:
        """Files outside the campaign whose content decides the outcome (code, weights); hashed into its identity."""
        return []
