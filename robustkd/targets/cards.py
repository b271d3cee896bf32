"""From a card to a target, whatever its kind."""

from __future__ import annotations

from typing import Any

from robustkd import plugins
from robustkd.contracts import BaseTarget, PluginError, TargetError


def target_from_card(card: dict[str, Any]) -> BaseTarget:
    """The target that ``card`` describes, with fresh weights.

    Raises:
        TargetError: nobody here knows such a target.
    """
    try:
        kind = plugins.load("targets", str(card["target"]))
    except PluginError as error:
        raise TargetError(error.message, fix=f"install the package that it was made with ({error.fix})") from error
    target: BaseTarget = kind.from_card(card)
    return target
