"""From a card to a target, whatever its kind."""

from __future__ import annotations

from robustkd import plugins
from robustkd.contracts import BaseTarget, Card, PluginError, TargetError
from robustkd.contracts.json_value import JsonObject


def target_from_card(card: JsonObject) -> BaseTarget:
    """The target that ``card`` describes, with fresh weights.

    Raises:
        TargetError: it is no card, or nobody here knows such a target.
    """
    try:
        kind = plugins.load("targets", Card.read(card).target)
    except PluginError as error:
        raise TargetError(error.message, fix=f"install the package that it was made with ({error.fix})") from error
    target: BaseTarget = kind.from_card(card)
    return target
