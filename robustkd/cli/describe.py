"""``robustkd describe``."""

from __future__ import annotations

import inspect
import json
from typing import Any

import click

from robustkd import plugins
from robustkd.cli.options import json_option
from robustkd.contracts import PluginError, suggestion


@click.command("describe")
@click.argument("name")
@click.option("--group", type=click.Choice(plugins.GROUPS), help="Where a name stands in several groups.")
@json_option
def command(name: str, group: plugins.Group | None, as_json: bool) -> None:
    """Tell everything about one plug-in."""
    where = [g for g in plugins.GROUPS if name.partition(":")[0] in plugins.names(g) and group in (None, g)]
    if not where:
        known = sorted({item for g in plugins.GROUPS for item in plugins.names(g)})
        raise PluginError(f"there is no plug-in '{name}'", fix=suggestion(name, known) or "robustkd list shows them all")
    described = [_describe(g, name) for g in where]
    if as_json:
        click.echo(json.dumps(described, indent=1))
        return
    for item in described:
        _print(item)


def _describe(group: plugins.Group, name: str) -> dict[str, Any]:
    plugin = plugins.load(group, name)
    item: dict[str, Any] = {"name": name, "group": group, "summary": inspect.cleandoc(plugin.__doc__ or "")}
    for trait in ("kind", "norms", "goals", "severity", "rule", "cost", "uses_threat", "version", "source"):
        if value := getattr(plugin, trait, None):
            item[trait] = list(value) if isinstance(value, tuple) else value
    schema = getattr(plugin, "Params", None)
    item["params"] = schema.model_json_schema() if schema else {}
    return item


def _print(item: dict[str, Any]) -> None:
    click.secho(f"{item['name']}  ({plugins.one_of(item['group'])})", bold=True)
    click.echo(f"\n{item['summary']}\n")
    for trait in ("kind", "norms", "goals", "severity", "rule", "cost", "version", "source"):
        if trait in item:
            value = item[trait]
            click.echo(f"  {trait:<9} {', '.join(value) if isinstance(value, list) else value}")
    schema = item["params"]
    properties = schema.get("properties", {})
    if properties:
        click.secho("\n  parameters", bold=True)
    _print_fields(schema, schema.get("$defs", {}), "    ")
    if item["group"] in ("attacks", "defenses", "analyses"):
        kind = f"'{item['name']}'" if ":" in item["name"] else item["name"]
        keys = ", ".join([f"kind: {kind}", *(f"{key}: .." for key in schema.get("required", []))])
        keys += ", defenses: [..]" if item["group"] == "analyses" else ""
        click.secho("\n  in a campaign", bold=True)
        click.echo(f"    my-{item['name'].split(':')[0]}: {{{keys}}}\n")


def _print_fields(schema: dict[str, Any], models: dict[str, Any], indent: str) -> None:
    """One parameter and its text; the parameters of a nested block follow, further in."""
    for key, field in schema.get("properties", {}).items():
        nested = _nested(field, models)
        default = "required" if key in schema.get("required", []) else f"default {_default(field, nested)}"
        click.echo(f"{indent}{key}: {_type(field)}, {default}")
        if text := field.get("description"):
            click.echo(f"{indent}    {text}")
        if nested:
            _print_fields(nested, models, indent + "    ")


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


def _type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return " | ".join(str(value) for value in field["enum"])
    if "anyOf" in field:
        return " | ".join(_type(option) for option in field["anyOf"])
    if "$ref" in field:
        return "block"
    bounds = [f"{sign} {field[key]}" for key, sign in _BOUNDS.items() if key in field]
    return " ".join([str(field.get("type", "any")), *bounds])


_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
