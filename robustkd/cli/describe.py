"""``robustkd describe``."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from robustkd import plugins
from robustkd.cli.families import family, siblings
from robustkd.cli.names import groups_of, plugin_names
from robustkd.cli.options import columns, json_option, print_reserved, whole_words

if TYPE_CHECKING:
    from pydantic.json_schema import JsonSchemaValue

    from robustkd.contracts.json_value import JsonValue

_FULL_LINE = 90
"""Characters from which on a line of a docstring ends because it is full."""


@click.command("describe")
@click.argument("name", shell_complete=plugin_names(*plugins.GROUPS))
@click.option("--group", type=click.Choice(plugins.GROUPS), help="Where a name stands in several groups.")
@json_option
def command(name: str, group: plugins.Group | None, as_json: bool) -> None:
    """Tell everything about one plug-in: parameters with ranges and defaults, what it can be used for, source, an example."""
    described = [describe(where, name) for where in groups_of(name, group)]
    if as_json:
        print_reserved(json.dumps([item.to_dict() for item in described], indent=1))
        return
    for item in described:
        _print(item)


@dataclass(frozen=True)
class Description:
    """What is told of one plug-in.

    Attributes:
        summary, method: the docstrings of its class and of its module.
        traits: class attributes of the contracts, by their names.
        location: the module and the class.
        params: the JSON Schema of its parameters.
        example: how it stands in a campaign file; None where there is no example.
    """

    name: str
    group: plugins.Group
    summary: str
    method: str
    traits: Mapping[str, str | bool | list[str]]
    package: str
    package_version: str
    location: str
    params: JsonSchemaValue
    example: str | None

    def to_dict(self) -> dict[str, JsonValue]:
        """What ``--json`` prints: the traits stand among the others."""
        found: dict[str, JsonValue] = {}
        for name, value in vars(self).items():
            found |= value if name == "traits" else {name: value}
        return found


def describe(group: plugins.Group, name: str) -> Description:
    """The description of a plug-in, which is imported for it."""
    from robustkd.plugin_kit.example import as_yaml, example_block

    plugin = plugins.load(group, name)
    origin = next(info for info in plugins.listing(group) if info.name == name.partition(":")[0])
    schema, block = getattr(plugin, "Params", None), example_block(group, name)
    return Description(
        name=name,
        group=group,
        summary=inspect.cleandoc(plugin.__doc__ or ""),
        method=inspect.cleandoc(inspect.getmodule(plugin).__doc__ or ""),
        traits=_traits(plugin),
        package=origin.package,
        package_version=origin.package_version,
        location=origin.location,
        params=schema.model_json_schema() if schema else {},
        example=as_yaml(block) if block else None,
    )


def _traits(plugin: type[Any]) -> dict[str, str | bool | list[str]]:
    found: dict[str, str | bool | list[str]] = {}
    for trait in _TRAITS:
        value = getattr(plugin, trait, None)
        of_images, of_norms = "images" in plugins.modalities(plugin), getattr(plugin, "space", "pixels") == "pixels"
        if (trait in _OF_IMAGES and not of_images) or (trait == "norms" and not of_norms):
            continue
        if isinstance(value, frozenset | tuple):
            found[trait] = sorted(value) if isinstance(value, frozenset) else list(value)
        elif isinstance(value, str | bool) and value != "":
            found[trait] = value
    return found


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


def traits(item: Description) -> list[tuple[str, str]]:
    """What a plug-in is, as a word and a text each."""
    found = []
    for trait, value in item.traits.items():
        said = _SAID[trait][0 if value else 1] if isinstance(value, bool) else value
        found.append((_TRAITS[trait], said if isinstance(said, str) else ", ".join(said)))
    return [*found, ("package", f"{item.package} {item.package_version} ({item.location})")]


@dataclass(frozen=True)
class Parameter:
    """A parameter as it is shown; ``path`` is longer than 1 for one of a nested block."""

    path: tuple[str, ...]
    type: str
    default: str
    text: str


def parameters(schema: JsonSchemaValue) -> list[Parameter]:
    """The parameters of a schema; those of a nested block follow the block."""
    return list(_fields(schema, schema.get("$defs", {}), ()))


def _print(item: Description) -> None:
    click.secho(f"{item.name}  ({plugins.one_of(item.group)})", bold=True)
    click.echo(f"\n{whole_words(_joined(item.summary))}\n\n{whole_words(_joined(item.method.replace('``', '`')), '  ')}\n")
    for word, text in traits(item):
        click.echo(whole_words(f"{word:<10} {text}", "  ", " " * 13))
    _print_family(item)
    found = parameters(item.params)
    if found:
        click.secho("\n  parameters", bold=True)
    for parameter in found:
        indent = "    " * len(parameter.path)
        click.echo(whole_words(f"{parameter.path[-1]}: {parameter.type}, {parameter.default}", indent, f"{indent}  "))
        if parameter.text:
            click.echo(whole_words(parameter.text, f"{indent}    "))
    if item.example:
        click.secho("\n  in a campaign", bold=True)
        click.echo(_indented(item.example, "    ") + "\n")


def _joined(text: str) -> str:
    """A docstring for a terminal that is narrower than its source: sentences that go over several lines are on one."""
    if columns(sys.stdout) is None:
        return text
    lines, before = list[str](), ""
    for line in text.split("\n"):
        goes_on = len(before) >= _FULL_LINE and not before.startswith(" ")
        if goes_on and line and not line.startswith((" ", "- ")):
            lines[-1] += f" {line}"
        else:
            lines.append(line)
        before = line
    return "\n".join(lines)


def _print_family(item: Description) -> None:
    """The plug-ins of the same kind, as a tree, this one marked."""
    listing = plugins.listing(item.group)
    own = next((info for info in listing if info.name == item.name.partition(":")[0]), None)
    of = family(own) if own else ()
    if own is None or not of:
        return
    click.secho("\n  family", bold=True)
    for depth, part in enumerate((item.group, *of)):
        click.echo("    " + ("   " * (depth - 1) + "└─ " if depth else "") + part.replace("_", " "))
    names = " ".join(f"[{name}]" if name == own.name else name for name in siblings(own, listing))
    click.echo(whole_words(names, "    " + "   " * len(of)))


def _indented(text: str, indent: str = "  ") -> str:
    return "\n".join(f"{indent}{line}".rstrip() for line in text.splitlines())


def _fields(schema: JsonSchemaValue, models: JsonSchemaValue, above: tuple[str, ...]) -> Iterator[Parameter]:
    for key, field in schema.get("properties", {}).items():
        nested = _nested(field, models)
        default = "required" if key in schema.get("required", []) else f"default {_default(field, nested)}"
        path = (*above, key)
        yield Parameter(path, _type(field, models), default, field.get("description", ""))
        if nested:
            yield from _fields(nested, models, path)


def _nested(field: JsonSchemaValue, models: JsonSchemaValue) -> JsonSchemaValue | None:
    """The schema of the block that a parameter is, or may be."""
    for option in (field, *field.get("anyOf", ())):
        model: JsonSchemaValue = models.get(str(option.get("$ref", "")).rsplit("/", 1)[-1], {})
        if model.get("properties"):
            return model
    return None


def _default(field: JsonSchemaValue, nested: JsonSchemaValue | None) -> str:
    """What a parameter is when it is left out: a block that has no default of its own is made of its parameters'."""
    if "default" in field:
        return json.dumps(field["default"])
    return "as below" if nested else "{}" if field.get("type") == "object" else "null"


def _type(field: JsonSchemaValue, models: JsonSchemaValue) -> str:
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
