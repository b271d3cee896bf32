"""Writes the reference from the code: a page for each plug-in and preset, the commands, and what Python code may import.

A page holds what ``robustkd describe`` knows of a plug-in, so there is no second text that could be out of date.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import click

import robustkd
from robustkd import contracts, plugins
from robustkd.campaigns.file import presets
from robustkd.cli import COMMANDS, cli
from robustkd.cli.describe import describe, parameters, traits
from robustkd.contracts import PluginError
from robustkd.plugin_kit.example import as_yaml, example_block

TITLES = {
    "attacks": "Attacks",
    "defenses": "Defenses",
    "checks": "Checks",
    "analyses": "Analyses",
    "datasets": "Data sets",
    "models": "Models",
    "transforms": "Input transforms",
    "detectors": "Detectors",
    "condensers": "Condensers",
    "judges": "Judges",
    "targets": "Targets",
    "engines": "Engines",
}
GROUPS: list[plugins.Group] = [
    group for group in plugins.GROUPS if any(info.package == "robustkd" for info in plugins.listing(group))
]
PUBLIC = [name for name in robustkd.__all__ if callable(getattr(robustkd, name))]  # not the modules and the version
INDEXES = [*(f"reference/{group}/index" for group in GROUPS), "reference/presets/index", "reference/commands", "reference/api"]


def write(folder: Path) -> None:
    """Bring the generated pages in ``folder`` up to date; what is as it was keeps its time, so that it is not built again."""
    pages = dict(all_pages())
    for path in set(folder.rglob("*.md")) - {folder / name for name in pages}:
        path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def all_pages() -> dict[str, str]:
    """The text of every generated page by its path."""
    pages = {"presets/index.md": presets_index(), "commands.md": commands(), "api.md": api()}
    pages |= {f"presets/{name}.md": preset(name) for name in presets.names()}
    for group in GROUPS:
        pages[f"{group}/index.md"] = index(group)
        pages |= {f"{group}/{info.name}.md": family(info) or plugin(info) for info in builtin(group)}
    return pages


def builtin(group: plugins.Group) -> list[plugins.PluginInfo]:
    """The plug-ins of a group that come with robustkd, not what else is installed where the site is built."""
    return [info for info in plugins.listing(group) if info.package == "robustkd"]


def index(group: plugins.Group) -> str:
    """The table of a group."""
    rows = [[f"[`{info.name}`]({info.name}.md)", plugins.summary(info)] for info in builtin(group)]
    names = [info.name for info in builtin(group)]
    return f"# {TITLES[group]}\n\n{table(['name', 'what it is'], rows)}\n\n{contents(names)}"


def plugin(info: plugins.PluginInfo) -> str:
    """The page of one plug-in."""
    item = describe(info.group, info.name)
    parts = [f"# {info.name}", item.summary, item.method]
    if item.example:
        parts += ["## In a campaign", fenced(item.example, "yaml")]
    found = [
        [
            f"`{'.'.join(parameter.path)}`",
            code(parameter.type),
            code(parameter.default.removeprefix("default ")),
            parameter.text,
        ]
        for parameter in parameters(item.params)
    ]
    if found:
        parts += ["## Parameters", table(["parameter", "type and range", "default", "meaning"], found)]
    parts += ["## At a glance", table(["", ""], [[word, text] for word, text in traits(item)])]
    return "\n\n".join(parts) + "\n"


def family(info: plugins.PluginInfo) -> str | None:
    """The page of many plug-ins behind one name, or None for a single one."""
    found = plugins.family(info.group, info.name)
    if found is None:
        return None
    module = inspect.getmodule(found if inspect.isclass(found) else type(found))
    parts = [f"# {info.name}", inspect.cleandoc(getattr(module, "__doc__", "") or "")]
    try:
        members = found.members()
    except PluginError as error:  # the package is not installed where the site is built
        return (
            "\n\n".join([*parts, f"{error.message[0].upper()}{error.message[1:]} where this page was made: `{error.fix}`."])
            + "\n"
        )
    if block := example_block(info.group, f"{info.name}:{members[0]}"):
        parts += ["## In a campaign", fenced(as_yaml(block), "yaml")]
    said = f"`robustkd describe {info.name}:{members[0]}` tells the parameters of one of them."
    return "\n\n".join([*parts, "## Members", said, ", ".join(f"`{info.name}:{name}`" for name in members)]) + "\n"


def presets_index() -> str:
    """The table of the presets."""
    rows = [[f"[`{name}`]({name}.md)", presets.summary(name)] for name in presets.names()]
    said = "Campaign files that come with the package, run by name: `robustkd run quickstart`."
    return f"# Presets\n\n{said}\n\n{table(['name', 'what it is'], rows)}\n\n{contents(presets.names())}"


def preset(name: str) -> str:
    """The page of one preset: its file."""
    return f"# {name}\n\n{presets.summary(name)}\n\n{fenced(presets.read(name).rstrip(), 'yaml')}\n"


def commands() -> str:
    """What each command says for ``--help``."""
    top = click.Context(cli, info_name="robustkd", terminal_width=100, max_content_width=100, **cli.context_settings)
    parts = ["# The command line", fenced(cli.get_help(top))]
    for name in COMMANDS:
        command = cli.get_command(top, name)
        assert command is not None
        parts += [f"## robustkd {name}", fenced(command.get_help(click.Context(command, info_name=name, parent=top)))]
    return "\n\n".join(parts) + "\n"


def api() -> str:
    """What Python code may import, from the docstrings."""
    parts = [
        "# The Python API",
        "## For notebooks and scripts",
        *(documented(f"robustkd.{name}", getattr(robustkd, name)) for name in PUBLIC),
        "## For plug-ins: `robustkd.contracts`",
        *(documented(f"robustkd.contracts.{name}", getattr(contracts, name)) for name in contracts.__all__),
    ]
    return "\n\n".join(parts) + "\n"


def documented(path: str, thing: Any) -> str:
    """The directive that shows the docstring of one name."""
    if inspect.isclass(thing):
        inherited = "   :show-inheritance:\n" if issubclass(thing, BaseException) else ""
        said = f".. autoclass:: {path}\n   :members:\n   :exclude-members: Params\n{inherited}"
    elif callable(thing):
        said = f".. autofunction:: {path}\n"
    else:
        said = f".. autodata:: {path}\n   :no-value:\n"
    return fenced(said.rstrip(), "{eval-rst}")


def contents(names: list[str]) -> str:
    """The pages below an index, for the side bar."""
    return fenced(":hidden:\n\n" + "\n".join(names), "{toctree}") + "\n"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; line breaks become spaces."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |" for line in lines)


def code(text: str) -> str:
    """Text as code, or nothing."""
    return f"`{text}`" if text else ""


def fenced(text: str, language: str = "text") -> str:
    """A block of code."""
    return f"```{language}\n{text}\n```"
