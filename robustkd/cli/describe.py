"""``robustkd describe``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from robustkd import plugins
from robustkd.cli.names import groups_of, plugin_names
from robustkd.cli.options import json_option, print_reserved


@click.command("describe")
@click.argument("name", shell_complete=plugin_names(*plugins.GROUPS))
@click.option("--group", type=click.Choice(plugins.GROUPS), help="Where a name stands in several groups.")
@json_option
def command(name: str, group: plugins.Group | None, as_json: bool) -> None:
    """Tell everything about one plug-in: parameters with ranges and defaults, what it can be used for, source, an example."""
    described = [describe(where, name) for where in groups_of(name, group)]
    if as_json:
        print_reserved(json.dumps(described, indent=1))
        return
    for item in described:
        _print(item)


def describe(group: plugins.Group, name: str) -> dict[str, Any]:
    """What ``--json`` prints of one plug-in: its texts, its traits, the JSON Schema of its parameters, an example."""
    from robustkd.plugin_kit.example import as_yaml, example_block

    plugin = plugins.load(group, name)
    origin = next(info for info in plugins.listing(group) if info.name == name.partition(":")[0])
    item: dict[str, Any] = {"name": name, "group": group, "summary": inspect.cleandoc(plugin.__doc__ or "")}
    item["method"] = inspect.cleandoc(inspect.getmodule(plugin).__doc__ or "")
    for trait in _TRAITS:
        value = getattr(plugin, trait, None)
        if trait in _OF_IMAGES and "images" not in plugins.modalities(plugin):
            continue
        if isinstance(value, frozenset):
            value = tuple(sorted(value))
        if isinstance(value, str | bool | tuple) and value != "":
            item[trait] = list(value) if isinstance(value, tuple) else value
    item |= {"package": origin.package, "package_version": origin.package_version, "location": origin.location}
    schema = getattr(plugin, "Params", None)
    item["params"] = schema.model_json_schema() if schema else {}
    block = example_block(group, name)
    item["example"] = as_yaml(block) if block else None
    return item


_TRAITS = {
    "modalities": "modality",
    "modality": "modality",
    "kind": "kind",
    "norms": "norms",
    "goals": "goals",
    "space": "space",
    "gradients": "gradients",
    "iterative": "iterative",
    "learns": "learns",
    "needs": "needs",
    "uses_threat": "threat",
    "uses_data": "data",
    "severity": "severity",
    "rule": "rule",
    "cost": "cost",
    "thorough": "thorough",
    "control": "control",
    "version": "version",
    "source": "source",
}
"""Class attributes of the contracts, and the word that each stands behind."""

_OF_IMAGES = ("kind", "norms", "goals")
"""What says nothing of an attack on prompts, though its class has it."""

_SAID = {
    "gradients": ("differentiates the target", "sees outputs only (black box)"),
    "iterative": ("many steps", "one step"),
    "learns": ("is fitted to training data first", "needs no fitting"),
    "uses_threat": ("trained against the campaign's threat model", "trained without looking at the threat model"),
    "uses_data": ("trains on the training data", "does not look at the training data"),
    "thorough": ("runs under checks: thorough alone", "runs in every campaign with checks"),
    "control": ("searches for nothing: others are compared with it", "a search"),
}
"""What a flag means when it is on, and when it is off."""


def traits(item: dict[str, Any]) -> list[tuple[str, str]]:
    """What a plug-in is, as a word and a text each."""
    found = []
    for trait, word in _TRAITS.items():
        if trait in item:
            value = item[trait]
            if trait in _SAID:
                value = _SAID[trait][0 if value else 1]
            found.append((word, ", ".join(value) if isinstance(value, list) else value))
    return [*found, ("package", f"{item['package']} {item['package_version']} ({item['location']})")]


@dataclass(frozen=True)
class Parameter:
    """A parameter as it is shown; ``path`` is longer than 1 for one of a nested block."""

    path: tuple[str, ...]
    type: str
    default: str
    text: str


def parameters(schema: dict[str, Any]) -> list[Parameter]:
    """The parameters of a schema; those of a nested block follow the block."""
    return list(_fields(schema, schema.get("$defs", {}), ()))


def _print(item: dict[str, Any]) -> None:
    click.secho(f"{item['name']}  ({plugins.one_of(item['group'])})", bold=True)
    click.echo(f"\n{item['summary']}\n\n{_indented(item['method'])}\n")
    for word, text in traits(item):
        click.echo(f"  {word:<10} {text}")
    found = parameters(item["params"])
    if found:
        click.secho("\n  parameters", bold=True)
    for parameter in found:
        indent = "    " * len(parameter.path)
        click.echo(f"{indent}{parameter.path[-1]}: {parameter.type}, {parameter.default}")
        if parameter.text:
            click.echo(f"{indent}    {parameter.text}")
    if item["example"]:
        click.secho("\n  in a campaign", bold=True)
        click.echo(_indented(item["example"], "    ") + "\n")


def _indented(text: str, indent: str = "  ") -> str:
    return "\n".join(f"{indent}{line}".rstrip() for line in text.splitlines())


def _fields(schema: dict[str, Any], models: dict[str, Any], above: tuple[str, ...]) -> Iterator[Parameter]:
    for key, field in schema.get("properties", {}).items():
        nested = _nested(field, models)
        default = "required" if key in schema.get("required", []) else f"default {_default(field, nested)}"
        path = (*above, key)
        yield Parameter(path, _type(field, models), default, field.get("description", ""))
        if nested:
            yield from _fields(nested, models, path)


def _nested(field: dict[str, Any], models: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of the block that a parameter is, or may be."""
    for option in (field, *field.get("anyOf", ())):
        model: dict[str, Any] = models.get(str(option.get("$ref", "")).rsplit("/", 1)[-1], {})
        if model.get("properties"):
            return model
    return None


def _default(field: dict[str, Any], nested: dict[str, Any] | None) -> str:
    """What a parameter is when it is left out: a block that has no default of its own is made of its parameters'."""
    if "default" in field:
        return json.dumps(field["default"])
    return "as below" if nested else "{}" if field.get("type") == "object" else "null"


def _type(field: dict[str, Any], models: dict[str, Any]) -> str:
    field = field | models.get(str(field.get("$ref", "")).rsplit("/", 1)[-1], {})
    if group := field.get("x-robustkd-use"):
        return plugins.one_of(group)
    if "enum" in field:
        return " | ".join(str(value) for value in field["enum"])
    if "const" in field:
        return str(field["const"])
    if "anyOf" in field:
        return " | ".join(_type(option, models) for option in field["anyOf"])
    if "properties" in field:
        return "block"
    if field.get("type") == "array" and "items" in field:
        return f"list of {_type(field['items'], models)}" + (
            f", at least {field['minItems']}" if field.get("minItems", 0) > 1 else ""
        )
    bounds = [f"{sign} {field[key]}" for key, sign in _BOUNDS.items() if key in field]
    return " ".join([str(field.get("type", "any")), *bounds])


_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
