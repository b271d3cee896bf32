"""A plug-in as a parameter of another plug-in: an attack around an attack, the transforms in front of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializationInfo,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from pydantic.annotated_handlers import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from robustkd.contracts import Params, PluginError
from robustkd.contracts.json_value import JsonValue
from robustkd.plugins.registry import Group, build, load, one_of


class PluginSpec(BaseModel):
    """A plug-in by its ``kind``, with validated parameters: ``pgd``, or ``{kind: pgd, steps: 40}``. A subclass says the group."""

    model_config = ConfigDict(frozen=True)
    group: ClassVar[Group]

    kind: str
    params: SerializeAsAny[Params]

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, PluginSpec):
            return value
        rest = {"kind": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}
        kind, what = rest.pop("kind", None), one_of(cls.group)
        if not isinstance(kind, str):
            raise ValueError(f"write the {what}'s kind, or a mapping of its kind and its parameters")
        try:
            params = load(cls.group, kind).Params.model_validate(rest, context=info.context)
        except PluginError as error:
            raise ValueError(f"{error.message} ({error.fix})") from None
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"{what} '{kind}': {key}: {first['msg'].removeprefix('Value error, ')}") from None
        return {"kind": kind, "params": params}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """As it is written, not as it is held; which kinds there are, and what each takes, is the campaign schema's to say."""
        return {"type": ["string", "object"], "x-robustkd-use": cls.group}

    @model_serializer
    def _write(self, info: SerializationInfo) -> dict[str, JsonValue]:
        return {"kind": self.kind, **self.params.model_dump(mode="json", by_alias=info.by_alias)}

    def make(self) -> Any:
        """The plug-in with its parameters, under the name of its kind."""
        return build(self.group, self.kind, self.params)
