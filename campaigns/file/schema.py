"""The campaign file as a JSON Schema, for editors: every key, every installed plug-in, every parameter with its range and text.

The file itself is judged by ``resolve``; this is the same knowledge in the form that an editor completes from. What only the whole
file can tell (a teacher that is not in it, a circle, a norm that an attack cannot respect) is left to ``robustkd plan``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaValue

from robustkd import plugins
from robustkd.campaigns.file.document.document import AnalysisBlock, DefenseBlock, Document
from robustkd.campaigns.file.document.threat import ThreatSpec
from robustkd.contracts import PluginError
from robustkd.data import SplitParams

FRACTION = r"^\d+(\.\d+)?\s*/\s*\d+(\.\d+)?$"
"""Numbers may be written as 8/255, which any other reader of YAML takes for a text."""


class _Threatened(BaseModel):
    """What may be said about every attack, beside the parameters of its plug-in."""

    threat: ThreatSpec | None = None


def campaign_schema() -> JsonSchemaValue:
    """JSON Schema (2020-12). A plug-in that cannot be imported is left out."""
    schema = Document.model_json_schema(ref_template="#/$defs/{model}")
    definitions: JsonSchemaValue = schema["$defs"]
    definitions.pop("PluginBlock", None)
    for group, also in (
        ("attacks", _Threatened),
        ("defenses", DefenseBlock),
        ("analyses", AnalysisBlock),
        ("judges", None),
    ):
        definitions[plugins.one_of(group)] = _uses(group, "kind", definitions, also)  # type: ignore[arg-type]
        block = {"$ref": f"#/$defs/{plugins.one_of(group)}"}
        kinds = definitions[plugins.one_of(group)]["properties"]["kind"]
        uses = {"type": "object", "additionalProperties": {"if": {"type": "string"}, "then": kinds, "else": block}}
        schema["properties"][group] = uses | ({"minProperties": 1} if group in ("attacks", "defenses") else {})
    definitions["transform"] = _uses("transforms", "kind", definitions, None)
    definitions["detector"] = _uses("detectors", "kind", definitions, None)
    definitions["condenser"] = _uses("condensers", "kind", definitions, None)
    definitions["data"] = _uses("datasets", "name", definitions, SplitParams)
    schema["properties"]["data"] = {"$ref": "#/$defs/data"}
    checks = schema["properties"]["checks"]
    levels = definitions["ChecksSpec"]["properties"]["level"]
    schema["properties"]["checks"] = {"anyOf": [{"enum": _choices(levels)}, checks]}
    written: JsonSchemaValue = _as_written(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **written,
        "title": "robustkd campaign",
        "description": "A campaign of robustkd: robustkd run FILE",
    }


def _uses(group: plugins.Group, key: str, definitions: JsonSchemaValue, also: type[BaseModel] | None) -> JsonSchemaValue:
    """A block that names a plug-in by ``key`` and gives its parameters, and those of ``also``."""
    families, known = [], []
    for name in plugins.names(group):
        try:
            if plugins.family(group, name) is not None:
                families.append(name)
                continue
            plugin = plugins.load(group, name)
        except PluginError:
            continue
        place = f"{plugins.one_of(group)} {name}"
        own = _part(plugin.Params, place, definitions)
        shared = _part(also, f"every {plugins.one_of(group)}", definitions) if also is not None else {}
        definitions[place] = {
            "type": "object",
            "description": (plugin.__doc__ or "").splitlines()[0],
            "properties": {key: {"const": name}, **shared.get("properties", {}), **own.get("properties", {})},
            "required": [key, *shared.get("required", []), *own.get("required", [])],
            "additionalProperties": False,
        }
        known.append(name)
    cases = [
        {
            "if": {"properties": {key: {"const": name}}, "required": [key]},
            "then": {"$ref": f"#/$defs/{plugins.one_of(group)} {name}"},
        }
        for name in known
    ]
    named: list[JsonSchemaValue] = [{"enum": known}]
    named += [{"type": "string", "pattern": f"^{family}:.+"} for family in families]
    return {"type": "object", "properties": {key: {"anyOf": named}}, "required": [key], "allOf": cases}


def _part(model: type[BaseModel], place: str, definitions: JsonSchemaValue) -> JsonSchemaValue:
    """The schema of a model, whose own definitions are filed under ``place``."""
    schema = model.model_json_schema(ref_template=f"#/$defs/{place}: {{model}}")
    definitions |= {f"{place}: {name}": item for name, item in schema.pop("$defs", {}).items()}
    return schema


def _choices(field: JsonSchemaValue) -> list[Any]:
    """The words that a field takes."""
    options = field.get("anyOf", [field])
    return [word for option in options for word in option.get("enum", [option["const"]] if "const" in option else [])]


def _as_written(item: Any) -> Any:
    """Numbers also as fractions, plug-ins as parameters by their kind or by a block, architectures by their names."""
    if isinstance(item, list):
        return [_as_written(part) for part in item]
    if not isinstance(item, Mapping):
        return item
    if group := item.get("x-robustkd-use"):
        return {"anyOf": [{"type": "string"}, {"$ref": f"#/$defs/{plugins.one_of(group)}"}]}
    plain = {key: _as_written(value) for key, value in item.items() if key not in ("x-robustkd-group", "title")}
    if group := item.get("x-robustkd-group"):
        plain["enum"] = plugins.names(group)
    if item.get("type") == "number":
        limits = {key: plain.pop(key) for key in _LIMITS if key in plain}
        plain["anyOf"] = [{"type": plain.pop("type"), **limits}, {"type": "string", "pattern": FRACTION}]
    return plain


_LIMITS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf")
