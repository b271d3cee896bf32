"""What attacks, analyses and judges have in common: parameters that may refer to defenses of the same campaign."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from robustkd.contracts.errors import UsageError
from robustkd.contracts.plugin import Plugin

if TYPE_CHECKING:
    from robustkd.contracts.target import Target


class TargetHolder(Plugin):
    """A plug-in that is handed the finished targets of the defenses that its parameters refer to (``TargetRef``), same seed.

    Attributes:
        version: raise it when its numbers change; results of another version are computed again.
        targets: what it was handed, by the defenses' names.
    """

    version: ClassVar[str] = "1"

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.targets: Mapping[str, Target] = {}

    def with_targets(self, targets: Mapping[str, Target]) -> Self:
        """The same plug-in, holding ``targets``."""
        holding = copy.copy(self)
        holding.targets = dict(targets)
        return holding

    def target(self, name: str) -> Target:
        """The target called ``name`` that was handed over.

        Raises:
            UsageError: none was.
        """
        if name not in self.targets:
            raise UsageError(
                f"'{self.name}' refers to '{name}', which was not handed over",
                fix="in a campaign, name a defense of the same file; in Python, pass models={" + repr(name) + ": a network}",
            )
        return self.targets[name]

    def files(self) -> list[Path]:
        """Files outside the campaign whose content decides the outcome (code, weights); hashed into its identity."""
        return []
