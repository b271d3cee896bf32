"""Families of attacks: all that one package has, each under its own name, with a reason for those that cannot be used."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import ModuleType
from typing import ClassVar

from robustkd.attacks.adapters.counting import PeerAttack
from robustkd.contracts import PluginError
from robustkd.contracts.threat import Norm

ORDER: dict[Norm, float] = {"linf": float("inf"), "l2": 2.0, "l1": 1.0, "l0": 0.0}
"""The p of each norm, as peers want it."""


class PeerFamily(ABC):
    """The attacks of one package.

    Attributes:
        name: of the family, before the colon.
        unusable: the attacks of the package that cannot be used here, and why.
    """

    name: ClassVar[str]
    unusable: ClassVar[Mapping[str, str]]

    @abstractmethod
    def members(self) -> list[str]:
        """The names of the attacks that can be used, sorted as the package has them."""

    @abstractmethod
    def plugin(self, name: str) -> type[PeerAttack]:
        """The plug-in for one of the members."""

    def member(self, name: str) -> type[PeerAttack]:
        """The plug-in for the peer's attack ``name``.

        Raises:
            KeyError: there is none.
            PluginError: it is one of the ``unusable``, or the package that it needs is not there.
        """
        if name in self.unusable:
            raise PluginError(
                f"{self.name}:{name} cannot be used: {self.unusable[name]}",
                fix=f"robustkd list attacks --members shows the attacks of {self.name} that can",
            )
        if name not in self.members():
            raise KeyError(name)
        return self.plugin(name)


def peer_package(module: str, *, install: str) -> ModuleType:
    """The module of a peer, which the user has installed.

    Raises:
        PluginError: it is not installed, or its import fails. ``install`` is the remedy.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name == package:
            raise PluginError(f"{package} is not installed", fix=install) from None
        raise PluginError(f"{package} cannot be imported: it needs {error.name}", fix=f"pip install {error.name}") from error
    except Exception as error:
        raise PluginError(f"{module} cannot be imported: {type(error).__name__}: {error}", fix=install) from error
