"""Values as JSON has them: what is written to files of JSON and YAML, and read from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from typing_extensions import TypeAliasType  # a recursive one can be a field of a pydantic model

JsonValue = TypeAliasType("JsonValue", "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None")
JsonObject: TypeAlias = Mapping[str, JsonValue]
