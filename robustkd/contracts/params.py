"""Parameters of plug-ins: typed, documented, closed against unknown keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)
from pydantic.annotated_handlers import GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from robustkd.contracts.errors import RobustkdError


class Settings(BaseModel):
    """Base of what users write: unknown keys are errors, values are frozen.

    NaN, infinities, and true and false in the place of a number, for which pydantic would take them, are refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        given = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(item, bool) for item in given) and _only_numbers(cls, str(info.field_name)):
            raise ValueError("a number is meant")
        return value


@cache
def _only_numbers(model: type[BaseModel], name: str) -> bool:
    types = [model.model_fields[name].annotation, *_marks(model.model_fields[name].annotation)]
    return (int in types or float in types) and bool not in types


class Stored(BaseModel):
    """Base of what is written to files and hashed: what was added later is left out where it has its default."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        written: dict[str, object] = dump(self)
        for name, field in type(self).model_fields.items():
            later = any(isinstance(mark, AddedLater) for mark in field.metadata)
            if later and getattr(self, name) == field.get_default(call_default_factory=True):
                written.pop(name)
        return written


class Params(Settings, Stored):
    """Base of every plug-in's ``Params``. Field descriptions become the text of ``robustkd describe``."""


@dataclass(frozen=True)
class AddedLater:
    """Marks a parameter, by ``Annotated``, that a plug-in did not have at first.

    Where it has its default it is not written, so that a cell that was done before there was such a parameter keeps its identity.
    """


def renamed(name: str, former: str) -> FieldInfo:
    """Marks a parameter, by ``Annotated``, that was called ``former`` and is called ``name`` now.

    Campaigns may go on to give the former name, and a cell keeps the identity that it had under it.
    """
    info: FieldInfo = Field(validation_alias=AliasChoices(name, former), serialization_alias=former)
    return info


@dataclass(frozen=True)
class TargetReference:
    """Marks a string parameter as the name of another defense of the same campaign (see ``TargetRef``)."""


TargetRef = Annotated[str, TargetReference()]
"""A parameter type: the name of another defense, which is trained first and handed over by ``FitContext.target`` or, to an
attack, by ``Attack.target``."""


@dataclass(frozen=True)
class PluginName:
    """Marks a string parameter as the name of a plug-in of ``group`` (see ``ModelName``)."""

    group: str

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(core) | {"x-robustkd-group": self.group}


ModelName = Annotated[str, PluginName("models"), Field(examples=["tiny-cnn"])]
"""A parameter type: an architecture, by the name of its plug-in; a campaign that names none that is installed is refused."""
ModelParams = Annotated[dict[str, Any], Field(description="its parameters")]
"""A parameter type: the parameters of an architecture, which its own ``Params`` validates."""


def named_plugins(params: BaseModel) -> list[tuple[str, str, str]]:
    """The parameters that name a plug-in: the key, the group, and the name that was given."""
    return [
        (name, mark.group, value)
        for name, field in type(params).model_fields.items()
        for mark in [*field.metadata, *_marks(field.annotation)]
        if isinstance(mark, PluginName) and isinstance(value := getattr(params, name), str)
    ]


def _marks(annotation: object) -> list[object]:
    return [mark for item in get_args(annotation) for mark in (item, *_marks(item))]


def target_references(params: BaseModel) -> list[str]:
    """Names of the other defenses that ``params`` refers to, in field order, without repeats."""
    found: list[str] = []
    for name, field in type(params).model_fields.items():
        value = getattr(params, name)
        marked = _is_reference(field.annotation) or any(isinstance(mark, TargetReference) for mark in field.metadata)
        found += _strings(value) if marked else [ref for inner in inner_params(value) for ref in target_references(inner)]
    return list(dict.fromkeys(found))


def _is_reference(annotation: object) -> bool:
    arguments = get_args(annotation)
    return any(isinstance(item, TargetReference) or _is_reference(item) for item in arguments)


def _strings(value: object) -> list[str]:
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _strings(item)]
    return [value] if isinstance(value, str) else []


def inner_params(value: object) -> list[BaseModel]:
    """The outermost models within a parameter's value: itself, or those in its lists and mappings."""
    if isinstance(value, BaseModel):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [model for item in items for model in inner_params(item)]


def _inside_campaign(path: Path, info: ValidationInfo) -> Path:
    try:
        path = path.expanduser()
    except RuntimeError as error:  # the home of a user that there is not
        raise ValueError(str(error)) from None
    folder = (info.context or {}).get("folder")
    if path.is_absolute() or folder is None:
        return path
    resolved = (Path(folder) / path).resolve()
    if not resolved.is_relative_to(Path(folder).resolve()):
        raise ValueError("leads out of the campaign file's folder; give an absolute path if that is meant")
    return resolved


def _trained(written: object, info: ValidationInfo) -> object:
    """The folder of the trained defense that is named, where one is."""
    find = (info.context or {}).get("trained")
    if find is None or not isinstance(written, str):
        return written
    try:
        return find(written) or written
    except RobustkdError as error:
        raise ValueError(f"{error.message} ({error.fix})" if error.fix else error.message) from None


CampaignPath = Annotated[Path, AfterValidator(_inside_campaign)]
"""A parameter type: a path relative to the campaign file, which may not lead out of its folder; or an absolute path, also from ``~``.

Every parameter that is a path has this type. Without a campaign, paths are relative to the working folder.
"""
TRAINED = "a trained defense"


def saved_target(path: Path | None) -> Path | None:
    """The folder of a trained target of robustkd's own; None where ``path`` is another model."""
    return path if path is not None and (path / "card.json").is_file() else None


def _written(path: Path, info: SerializationInfo) -> Path | str:
    """In JSON, and so in identities, one word for every trained target: where it lies changes nothing, and what is in it counts."""
    return path if info.mode != "json" else TRAINED if saved_target(path) else str(path)


ModelPath = Annotated[Path, AfterValidator(_inside_campaign), BeforeValidator(_trained), PlainSerializer(_written)]
"""A parameter type: a ``CampaignPath``, or a trained defense of a campaign that was run: ``first.yaml#student``."""
