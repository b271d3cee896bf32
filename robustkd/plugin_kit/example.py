"""A valid use of any plug-in, made from what its ``Params`` say: what ``describe`` prints and the conformance suite runs.

Only what must be given is given. A required parameter shows how it is written by its own ``Field(examples=[..])``, parameters that
depend on each other by ``model_config = ConfigDict(json_schema_extra={"examples": [{..}]})``; the names of other defenses and nested
plug-ins speak for themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from robustkd import plugins
from robustkd.contracts import PluginError, target_references
from robustkd.contracts.json_value import JsonObject, JsonValue
from robustkd.contracts.params import TargetReference
from robustkd.plugins.nested import PluginSpec

_UNKNOWN = object()


def example_params(group: plugins.Group, name: str, given: Mapping[str, Any] | None = None) -> dict[str, JsonValue]:
    """Values for what must be given to the plug-in, as they are written in a campaign, and those ``given``.

    Raises:
        PluginError: a required parameter does not say how it is written, or the values together are not valid.
    """
    schema = plugins.load(group, name).Params
    values = _example(schema, (), f"{plugins.one_of(group)} '{name}'") | dict(given or {})
    try:
        schema.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "together"
        raise PluginError(
            f"{plugins.one_of(group)} '{name}': the values {values} are not valid: {where}: {first['msg']}",
            fix='give an example that is: model_config = ConfigDict(json_schema_extra={"examples": [{..}]})',
        ) from error
    return values


def example_block(group: plugins.Group, name: str) -> dict[str, JsonValue] | None:
    """The keys of a campaign file that use the plug-in, with the other defenses that it needs; None where none is."""
    if group in ("targets", "engines"):
        return None
    values = example_params(group, name)
    match group:
        case "checks":
            return {"checks": "thorough" if plugins.load(group, name).thorough else "standard"}
        case "datasets":
            return {"data": {"name": name, **values}}
        case "models":
            params = {"model_params": values} if values else {}
            return {"defenses": {"plain": {"kind": "standard", "model": name, **params}}}
        case "transforms":
            return _of_transform(name, values)
        case "detectors":
            return _of_detector(name, values)
        case "condensers":
            return _of_condenser(name, values)
        case "analyses":
            return _of_analysis(name, values)
    needed = _needed(group, name, values)
    mine = {_owner(name): {"kind": name, **values}}
    if group in ("attacks", "judges"):
        return ({"defenses": needed} if needed else {}) | {group: mine}
    return {"defenses": needed | mine}


def _of_transform(name: str, values: Mapping[str, Any]) -> dict[str, JsonValue] | None:
    """In front of an undefended model; of a transform that learns, the defense of its name, which trains it."""
    if plugins.load("transforms", name).learns:
        return example_block("defenses", name) if name in plugins.names("defenses") else None
    behind: JsonObject = {"kind": "input-transform", "base": "plain", "transforms": [{"kind": name, **values}]}
    return {"defenses": {"plain": _plain("images", 0), "filtered": behind}}


def _of_detector(name: str, values: Mapping[str, Any]) -> dict[str, JsonValue]:
    """Around an undefended model."""
    modality, needed = _modality("detectors", name), _needed("detectors", name, values)
    mine: JsonObject = {**_DETECTING[modality], "detector": {"kind": name, **values}}
    return {"defenses": {"plain": _plain(modality, 0), **needed, "watched": mine}}


def _of_condenser(name: str, values: Mapping[str, Any]) -> dict[str, JsonValue]:
    """Its set, and an undefended network that is trained on it."""
    mine: JsonObject = {"kind": "condensed-data", "condenser": {"kind": name, **values}}
    trained: JsonObject = {"kind": "train-on-condensed", "data": "small-set", "recipe": _plain("images", 0)}
    return {"defenses": {**_needed("condensers", name, values), "small-set": mine, "trained": trained}}


def _of_analysis(name: str, values: Mapping[str, Any]) -> dict[str, JsonValue]:
    """Of an ensemble of two classifiers, which gives any analysis something to compare; else, and where it refers to other defenses, of
    one undefended model.
    """
    needed = _needed("analyses", name, values)
    defenses, analysed = ({}, "plain") if needed else _ANALYSED.get(_modality("analyses", name), ({}, "plain"))
    if not defenses:
        defenses = {"plain": _plain(_modality("analyses", name), 0), **needed}
    return {"defenses": defenses, "analyses": {_owner(name): {"kind": name, **values, "defenses": [analysed]}}}


def _needed(group: plugins.Group, name: str, values: Mapping[str, Any]) -> dict[str, JsonValue]:
    """The defenses that the plug-in refers to, each an undefended model."""
    modality = _modality(group, name)
    referred = target_references(plugins.load(group, name).Params.model_validate(values))
    looks = _LOOKS.get((modality, group))
    if "similarity" in getattr(plugins.load(group, name), "needs_of_others", ()):
        looks = {"kind": "trans-encoder"}
    return {other: dict(looks) if looks else _plain(modality, place) for place, other in enumerate(referred)}


def _modality(group: plugins.Group, name: str) -> str:
    return plugins.modalities(plugins.load(group, name))[0]


def _owner(name: str) -> str:
    return f"my-{name.replace(':', '-')}"


def as_yaml(block: Mapping[str, Any]) -> str:
    """The block as it is written in a campaign file: a line for each use, its parameters in braces."""
    lines = []
    for key, value in block.items():
        if not isinstance(value, Mapping) or "name" in value:
            lines.append(f"{key}: {_flow(value)}")
        else:
            lines.append(f"{key}:")
            lines += [f"  {name}: {_flow(use)}" for name, use in value.items()]
    return "\n".join(lines)


_PLAIN = {
    "images": {"kind": "standard", "model": "small-cnn"},
    "text": {"kind": "lm-pretrain"},
    "text-to-image": {"kind": "text-to-image-pretrain"},
}
"""The undefended model that others stand on."""
_LOOKS = {("text-to-image", group): {"kind": "concept-classifier", "model": "small-cnn"} for group in ("judges", "analyses")}
"""What some plug-ins refer to instead, because it has to look at pictures."""


def _plain(modality: str, place: int) -> dict[str, JsonValue]:
    return _PLAIN[modality] | ({"replica": place} if place else {})


_DETECTING: dict[str, JsonObject] = {
    "images": {"kind": "with-detector", "base": "plain"},
    "text": {"kind": "detector-filter", "model": "plain"},
}
"""The defense that puts a detector around a model."""

_ANALYSED: dict[str, tuple[dict[str, JsonValue], str]] = {
    "images": (
        {"one": _plain("images", 0), "two": _plain("images", 1), "both": {"kind": "ensemble", "members": ["one", "two"]}},
        "both",
    )
}
"""The defenses of an analysis, and which of them is analysed, where that is not one undefended model."""


def _flow(value: Any) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000).removesuffix("\n").removesuffix("\n...")
    )


def _example(schema: type[BaseModel], path: tuple[str, ...], who: str) -> dict[str, JsonValue]:
    extra = schema.model_config.get("json_schema_extra")
    examples: Any = extra.get("examples") if isinstance(extra, dict) else None
    shown = dict(examples[0]) if examples else {}
    required = {key: field for key, field in schema.model_fields.items() if field.is_required() and key not in shown}
    return shown | {key: _value(field, (*path, key), who) for key, field in required.items()}


def _value(field: FieldInfo, path: tuple[str, ...], who: str) -> Any:
    if field.examples:
        return field.examples[0]
    marked: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    found = _of_type(marked, path, who)
    if found is _UNKNOWN:
        raise PluginError(
            f"{who} does not say how its parameter '{'.'.join(path)}' is written", fix="add examples=[..] to its Field"
        )
    return found


def _of_type(annotation: Any, path: tuple[str, ...], who: str) -> Any:
    """What a parameter of this type is like, as far as the type tells."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        if any(isinstance(mark, TargetReference) for mark in arguments[1:]):
            return path[-1].removesuffix("s")
        return _of_type(arguments[0], path, who)
    if get_origin(annotation) is Literal:
        return arguments[0]
    if get_origin(annotation) in (tuple, list):
        inner = _of_type(arguments[0], path, who)
        # Of a list of other defenses two are shown, or it would not be seen that it is one.
        if get_origin(arguments[0]) is Annotated and isinstance(inner, str):
            return [f"{inner}-1", f"{inner}-2"]
        return inner if inner is _UNKNOWN else [inner]
    if isinstance(annotation, type) and issubclass(annotation, PluginSpec):
        return {"kind": plugins.names(annotation.group)[0]}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _example(annotation, path, who)
    return {int: 10, float: 0.1, bool: True}.get(annotation, _UNKNOWN)
