"""``robustkd list``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NotRequired, Required

import click
from typing_extensions import TypedDict

from robustkd import plugins
from robustkd.cli.families import family, heading
from robustkd.cli.options import json_option, print_reserved, tell, whole_words


class Members(TypedDict, total=False):
    """The members of a family, and those that cannot be used, with the reasons."""

    members: list[str]
    unusable: dict[str, str]


class Row(Members):
    """A plug-in or a preset, as ``--json`` prints it; a preset has fewer keys."""

    group: NotRequired[plugins.Group]
    name: Required[str]
    package: Required[str]
    package_version: NotRequired[str]
    location: NotRequired[str]
    summary: Required[str]


@click.command("list")
@click.argument("group", required=False, metavar="[GROUP]", type=click.Choice([*plugins.GROUPS, "presets"]))
@click.option(
    "--modality",
    type=click.Choice(("images", "text", "text-to-image")),
    help="Only what is for such data (imports the plug-ins).",
)
@click.option("--members", is_flag=True, help="Also list the members of families, such as torchattacks:PGD (imports them).")
@json_option
def command(group: str | None, modality: str | None, members: bool, as_json: bool) -> None:
    """List what is installed, each with a line on what it is.

    GROUP: attacks, defenses, judges, checks, analyses, datasets, models, transforms, detectors, condensers, targets, engines or presets
    [default: all of them].
    """
    from robustkd.campaigns.file import presets

    found: dict[str, list[plugins.PluginInfo]] = {
        name: [item for item in plugins.listing(name) if modality is None or _is_for(item, modality)]
        for name in plugins.GROUPS
        if group in (None, name)
    }
    rows: dict[str, list[Row]] = {name: [_row(item, members) for item in items] for name, items in found.items()}
    if group in (None, "presets"):
        rows["presets"] = [
            {"name": name, "package": "robustkd", "summary": presets.summary(name)}
            for name in presets.names()
            if modality is None or _preset_is_for(name, modality)
        ]
    if as_json:
        print_reserved(json.dumps(rows, indent=1))
        return
    for name, items in rows.items():
        if not items:
            continue
        click.secho(name, bold=True)
        width = max(len(item["name"]) for item in items)
        above = ""
        for title, item in _by_family(name, items, found.get(name, [])):
            if title != above:
                click.echo(f" {title}")
                above = title
            origin = "" if item["package"] == "robustkd" else f"  ({item['package']} {item.get('package_version', '')})"
            line = f"{item['name']:<{width}}  {item['summary']}{origin}".rstrip()
            click.echo(whole_words(line, "  ", " " * (width + 4)))
            for member in item.get("members", []):
                tell(f"{item['name']}:{member}{_threats(item['group'], item['name'], member)}", "    ")
            for member, reason in item.get("unusable", {}).items():
                tell(f"{item['name']}:{member}  cannot be used: {reason}", "    ")


def _by_family(group: str, rows: list[Row], found: Sequence[plugins.PluginInfo]) -> list[tuple[str, Row]]:
    """The rows with the title of their family, those of a family together; groups of one family have no titles."""
    titles = [heading(group, family(item)) for item in found] or [""] * len(rows)
    if len(set(titles)) == 1:
        titles = [""] * len(rows)
    return sorted(zip(titles, rows, strict=True), key=lambda pair: (pair[0], pair[1]["name"]))


def _is_for(item: plugins.PluginInfo, modality: str) -> bool:
    """Whether a plug-in is for such data; one that cannot be imported is told, and left out."""
    from robustkd.contracts import PluginError

    if item.group in ("targets", "engines"):
        return False
    try:
        plugin = plugins.family(item.group, item.name) or plugins.load(item.group, item.name)
        return modality in plugins.modalities(plugin)
    except PluginError as error:
        click.echo(f"warning: {error}", err=True)
        return False


def _preset_is_for(name: str, modality: str) -> bool:
    import yaml

    from robustkd.campaigns.file import presets

    data = yaml.safe_load(presets.read(name))["data"]["name"]
    return modality in plugins.modalities(plugins.load("datasets", data))


def _row(item: plugins.PluginInfo, members: bool) -> Row:
    row: Row = {
        "group": item.group,
        "name": item.name,
        "package": item.package,
        "package_version": item.package_version,
        "location": item.location,
        "summary": plugins.summary(item),
    }
    row.update(_members(item, members))
    return row


def _members(item: plugins.PluginInfo, wanted: bool) -> Members:
    if not wanted:
        return {}
    from robustkd.contracts import PluginError

    try:
        found = plugins.family(item.group, item.name)
        if found is None:
            return {}
        # Also of a family of another package, which may know of none that cannot be used.
        return {"members": found.members(), "unusable": dict(getattr(found, "unusable", {}))}
    except PluginError as error:
        click.echo(f"warning: {error}", err=True)
        return {}


def _threats(group: plugins.Group, family: str, member: str) -> str:
    """The threat models that a member of a family of attacks fits, or why it cannot be used here."""
    from robustkd.contracts import Attack, PluginError

    try:
        plugin = plugins.load(group, f"{family}:{member}")
    except PluginError as error:
        return f"  {error.message}; fix: {error.fix}"
    if not issubclass(plugin, Attack):
        return ""
    return f"  {plugin.kind}, {', '.join(plugin.norms)}, {' or '.join(plugin.goals)}"
