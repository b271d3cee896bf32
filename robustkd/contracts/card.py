"""The card of a target: what the same object is rebuilt from, once its weights are loaded."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import ConfigDict, ValidationError

from robustkd.contracts.errors import TargetError
from robustkd.contracts.json_value import JsonObject
from robustkd.contracts.params import AddedLater, Stored


class Card(Stored):
    """Base of the typed cards: a target reads its own by ``read`` and writes it by ``to_json``.

    A card is plain JSON from anybody. Reading one checks its types and runs nothing. Keys that a class does not declare are kept, and a
    field that was added later (``AddedLater``) is not written where it has its default, so that older cards and their hashes stay valid.

    Attributes:
        target: the kind of target.
        version: raised, with ``newest``, where a former release would rebuild another function from the same card.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    newest: ClassVar[int] = 1
    target: str
    version: Annotated[int, AddedLater()] = 1

    @classmethod
    def read(cls, card: JsonObject) -> Self:
        """The typed form of a card.

        Raises:
            TargetError: a key is missing or has a value of another type, or the card was written by a later release.
        """
        try:
            own = cls.model_validate(card)
        except ValidationError as error:
            first = error.errors()[0]
            raise TargetError(
                ": ".join(["it holds no saved target", ".".join(map(str, first["loc"])), first["msg"]]).replace(": : ", ": "),
                fix="save the target again with robustkd.targets.save_target",
            ) from None
        if own.version > cls.newest:
            raise TargetError(
                f"its card has version {own.version}, this release knows {cls.newest}", fix="pip install --upgrade robustkd"
            )
        return own

    def to_json(self) -> JsonObject:
        """The card as plain JSON."""
        return self.model_dump(mode="json")
