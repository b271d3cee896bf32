"""``robustkd test-plugin``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from robustkd import plugins
from robustkd.cli.names import groups_of, plugin_names
from robustkd.cli.options import json_option, print_reserved, whole_words

if TYPE_CHECKING:
    from robustkd.plugin_kit import Outcome

_COLOURS = {"passed": "green", "failed": "red", "skipped": "yellow"}


@click.command("test-plugin")
@click.argument(
    "names", metavar="PLUGIN_OR_DISTRIBUTION...", nargs=-1, required=True, shell_complete=plugin_names(*plugins.GROUPS)
)
@click.option("--group", type=click.Choice(plugins.GROUPS), help="Where a name stands in several groups.")
@click.option("--set", "chosen", multiple=True, metavar="KEY=VALUE", help="A parameter to test it with, such as epochs=1.")
@click.option("--quiet", "-q", is_flag=True, help="Only what failed.")
@json_option
def command(names: tuple[str, ...], group: plugins.Group | None, chosen: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    """Does a plug-in keep what the platform relies on? Tests it, or all plug-ins of an installed distribution, on small networks.

    Exit codes: 0 every property holds or does not apply, 1 one does not hold, 2 usage.
    """
    from robustkd.cli.one_model import settings
    from robustkd.plugin_kit import examine
    from robustkd.plugin_kit.suite import registered_by

    given = settings("--set", chosen)
    found: list[tuple[plugins.Group, str]] = []
    for name in names:
        found += registered_by(name) or [(item, name) for item in _tested(groups_of(name, group))]
    for where, name in found:
        _require_parameters(where, name, given)
    told, broken = [], False
    for where, name in found:
        outcomes = examine(where, name, given)
        broken |= any(outcome.status == "failed" for outcome in outcomes)
        told.append({"name": name, "group": where, "properties": [asdict(outcome) for outcome in outcomes]})
        if not as_json:
            _print(where, name, outcomes, quiet)
    if as_json:
        print_reserved(json.dumps(told, indent=1))
    if broken:
        raise click.exceptions.Exit(1)


def _tested(groups: list[plugins.Group]) -> list[plugins.Group]:
    """Those that the suite covers: a guard is a defense and, by the same name, a target; all of them where it covers none."""
    from robustkd.plugin_kit.suite import is_covered

    return [group for group in groups if is_covered(group)] or groups


def _require_parameters(group: plugins.Group, name: str, given: Mapping[str, object]) -> None:
    """Refuse a parameter that the plug-in does not have; one that cannot be loaded is left to the suite, which says why."""
    from robustkd.contracts import RobustkdError, UsageError, suggestion

    try:
        known = list(plugins.load(group, name).Params.model_fields)
    except (RobustkdError, AttributeError):
        return
    for key in given:
        if key not in known:
            raise UsageError(
                f"{plugins.one_of(group)} '{name}': {key}: there is no such parameter",
                fix=suggestion(key, known) or f"parameters of {name}: {', '.join(known) or 'none'}",
            )


def _print(group: plugins.Group, name: str, outcomes: list[Outcome], quiet: bool) -> None:
    origin = next(info for info in plugins.listing(group) if info.name == name.partition(":")[0])
    count = sum(outcome.status == "failed" for outcome in outcomes)
    failed = f"{count} of {len(outcomes)} properties fail" if count else "conforms"
    if (unseen := sum(outcome.status == "skipped" for outcome in outcomes)) and not quiet:
        failed += f"; {unseen} of {len(outcomes)} properties could not be looked at, or do not apply"
    click.secho(f"{name}  ({plugins.one_of(group)} of {origin.package} {origin.package_version}): {failed}", bold=True)
    for outcome in outcomes:
        if quiet and outcome.status != "failed":
            continue
        word = click.style(f"{outcome.status:<8}", fg=_COLOURS[outcome.status])
        told = whole_words(f"{outcome.property:<22} {outcome.why or outcome.promise}", " " * 11, " " * 34)
        click.echo(f"  {word} {told.lstrip()}")
        if outcome.status == "failed" and outcome.fix:
            click.echo(whole_words(f"fix: {outcome.fix}", " " * 34, " " * 39))
