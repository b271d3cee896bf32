"""What the blocks of a campaign file are made of: names, and a plug-in with its parameters."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from robustkd.contracts.json_value import JsonValue

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _plain_name(value: object) -> object:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError("names have up to 64 letters, digits, '-', '_' and '.', and begin with a letter or digit")
    return value


Name = Annotated[str, BeforeValidator(_plain_name)]
"""The name of a campaign, or what a campaign file calls a plug-in."""


class PluginBlock(BaseModel):
    """A plug-in and its parameters, which are validated by its own ``Params``; a bare word is its kind."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value

    @property
    def params(self) -> dict[str, JsonValue]:
        """A copy of the keys beside ``kind``, as they were written."""
        return dict(self.model_extra or {})
