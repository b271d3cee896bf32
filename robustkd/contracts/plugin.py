"""What all plug-ins have in common: parameters, and a name."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from robustkd.contracts.params import Params

if TYPE_CHECKING:
    from robustkd.contracts.threat import ThreatModel


class Plugin:
    """A plug-in: parameters, and a name.

    Attributes:
        Params: the type of its parameters.
        params: its parameters.
        source: the paper.
        version: raise it when its numbers change; results of another version are computed again.
        revisions: by norm, how often the numbers in this norm alone have changed: there, results of another revision are computed again.
    """

    Params: ClassVar[type[Params]] = Params
    source: ClassVar[str] = ""
    version: str = "1"
    revisions: Mapping[str, int] = MappingProxyType({})

    def __init__(self, params: Any = None) -> None:
        self.params: Any = self.Params() if params is None else params

    def version_for(self, threat: ThreatModel) -> str:
        """The version of its numbers under ``threat``: ``2``, or ``2.1`` in a norm with one revision."""
        revision = self.revisions.get(self.norm_under(threat), 0)
        return f"{self.version}.{revision}" if revision else self.version

    def norm_under(self, threat: ThreatModel) -> str:
        """The norm whose revision counts under ``threat``: the threat's, unless it searches in one of its own."""
        return threat.budget.identity[0]

    @functools.cached_property
    def name(self) -> str:
        """The name that a campaign knows it by, such as ``pgd``. ``plugins.make`` sets it.

        An object that its class made is called what the class is registered as, else by the class. A subclass does not inherit it.
        """
        kind = type(self)
        return registered_name(f"{kind.__module__}:{kind.__qualname__}") or kind.__name__


@functools.cache
def registered_name(location: str) -> str | None:
    """The name under which an installed package registers the class at ``module:Class``; of several the first in the alphabet."""
    points = importlib.metadata.entry_points(value=location)
    return min((point.name for point in points if point.group.startswith("robustkd.")), default=None)
