"""Names as they are typed: found, completed, and answered with a suggestion when they are wrong. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

    from robustkd.plugins import Group

Complete = Callable[["click.Context", "click.Parameter", str], list["CompletionItem"]]


def groups_of(name: str, group: Group | None = None) -> list[Group]:
    """The groups that have a plug-in (or a family) of that name: ``group`` alone where one is given.

    Raises:
        PluginError: there is none.
    """
    from robustkd import plugins
    from robustkd.campaigns.file import presets
    from robustkd.contracts import PluginError, suggestion

    asked: list[Group] = [group] if group else list(plugins.GROUPS)
    found = [item for item in asked if name.partition(":")[0] in plugins.names(item)]
    if not found:
        known = sorted({other for item in asked for other in plugins.names(item)})
        what = plugins.one_of(group) if group else "plug-in"
        preset = f"it is a preset: robustkd plan {name} shows what it does" if name in presets.names() else None
        raise PluginError(
            f"there is no {what} '{name}'", fix=preset or suggestion(name, known) or "robustkd list shows them all"
        )
    return found


def plugin_names(*groups: Group) -> Complete:
    """Complete the names of the plug-ins of a group."""

    def complete(ctx: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from robustkd import plugins

        found: dict[str, str] = {}
        for group in groups:
            found |= {name: plugins.one_of(group) for name in plugins.names(group) if name.startswith(begun)}
        return [CompletionItem(name, help=what) for name, what in sorted(found.items())]

    return complete


def campaigns(ctx: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Completes the names of presets, and the campaign files of a folder."""
    from pathlib import Path

    from click.shell_completion import CompletionItem

    from robustkd.campaigns.file import presets

    files = sorted(str(path) for suffix in ("*.yaml", "*.yml") for path in Path(begun).parent.glob(suffix))
    names = [name for name in [*presets.names(), *files] if name.startswith(begun)]
    return [CompletionItem(name) for name in names]


def outputs(ctx: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Completes what was run: campaigns, and the output folders below ``runs`` and where one is typing."""
    import os
    from pathlib import Path

    from click.shell_completion import CompletionItem

    found = {str(file.parent) for at in ("runs", os.path.dirname(begun)) for file in Path(at).glob("*/results.json")}  # noqa: PTH120
    return campaigns(ctx, parameter, begun) + [CompletionItem(name) for name in sorted(found) if name.startswith(begun)]
