"""What all plug-ins have in common: parameters, and a name."""

from __future__ import annotations

import functools
import importlib.metadata
from typing import Any, ClassVar

from robustkd.contracts.params import Params


class Plugin:
    """A plug-in: parameters, and a name.

    Attributes:
        Params: the type of its parameters.
        params: its parameters.
        source: the paper.
    """

    Params: ClassVar[type[Params]] = Params
    source: ClassVar[str] = ""

    def __init__(self, params: Any = None) -> None:
        self.params: Any = self.Params() if params is None else params

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
