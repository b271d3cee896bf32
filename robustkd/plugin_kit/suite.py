"""The conformance suite: what the platform relies on in a plug-in, one property at a time (see ``subject``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from packaging.utils import canonicalize_name

from robustkd import plugins
from robustkd.contracts import PluginError, RobustkdError
from robustkd.plugin_kit.properties.groups import OF_PROMPTS, PROPERTIES
from robustkd.plugin_kit.subject import Broken, NotApplicable, Property, Subject, preserved_generators

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Outcome:
    """What became of one property.

    Attributes:
        promise: the property in one sentence.
        why: what was seen instead, or why it does not apply.
        fix: what to do about it.
    """

    property: str
    promise: str
    status: Status
    why: str = ""
    fix: str = ""


def title(item: Property) -> str:
    """The name of a property, as it is shown."""
    return item.__name__.replace("_", "-")


def subject(group: plugins.Group, name: str, settings: Mapping[str, Any] | None = None) -> Subject:
    """The plug-in called ``name``.

    Raises:
        PluginError: it is unknown, or cannot be imported.
    """
    return Subject(group, name, plugins.load(group, name), dict(settings or {}))


def is_covered(group: plugins.Group) -> bool:
    """Whether the suite has something to ask of the plug-ins of a group."""
    return group in PROPERTIES or group in OF_PROMPTS


def properties(group: plugins.Group, plugin: type[Any] | None = None) -> Sequence[Property]:
    """What is asked of the plug-ins of a group; of one that is given, what is asked of those for its first kind of data.

    Raises:
        PluginError: the suite has nothing to ask of that group.
    """
    if group in OF_PROMPTS and (group not in PROPERTIES or (plugin and plugins.modalities(plugin)[0] != "images")):
        return OF_PROMPTS[group]
    if group not in PROPERTIES:
        known = dict.fromkeys((*PROPERTIES, *OF_PROMPTS))
        raise PluginError(f"there is no conformance suite for {group}", fix=f"there is one for {', '.join(known)}")
    return PROPERTIES[group]


def look(item: Property, tested: Subject) -> Outcome:
    """One property of one plug-in; whatever the plug-in raises is its failure."""
    promise = (item.__doc__ or "").splitlines()[0].rstrip(".")
    try:
        with preserved_generators():
            item(tested)
    except NotApplicable as reason:
        return Outcome(title(item), promise, "skipped", str(reason))
    except Broken as error:
        return Outcome(title(item), promise, "failed", str(error), error.fix)
    except RobustkdError as error:
        return Outcome(title(item), promise, "failed", error.message, error.fix or "")
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        return Outcome(title(item), promise, "failed", f"it raised {said}", "see that it runs with these parameters")
    return Outcome(title(item), promise, "passed")


def examine(group: plugins.Group, name: str, settings: Mapping[str, Any] | None = None) -> list[Outcome]:
    """Every property of one plug-in.

    Args:
        group: such as ``defenses``.
        name: of the plug-in, or ``family:member``.
        settings: parameters to test it with, beside those that are required.
    """
    properties(group)  # says so where there is no suite
    tested = subject(group, name, settings)
    return [look(item, tested) for item in properties(group, tested.plugin)]


def conformance(group: plugins.Group, name: str, **settings: Any) -> Any:
    """A pytest function with a test for each property: ``test_conformance = conformance("defenses", "my-loss")``.

    Args:
        group: the entry point's group without ``robustkd.``.
        name: of the plug-in.
        settings: parameters to test it with, beside those that are required.
    """
    import pytest

    tested: list[Subject] = []  # made by the first test: a plug-in that cannot be imported fails there
    try:
        plugin = plugins.load(group, name)
    except PluginError:
        plugin = None

    @pytest.mark.parametrize("item", properties(group, plugin), ids=title)
    def test(item: Property) -> None:
        if not tested:
            tested.append(subject(group, name, settings))
        outcome = look(item, tested[0])
        if outcome.status == "skipped":
            pytest.skip(outcome.why)
        if outcome.status == "failed":
            pytest.fail(f"{outcome.promise}: {outcome.why}\nfix: {outcome.fix}", pytrace=False)

    return test


def registered_by(distribution: str) -> list[tuple[plugins.Group, str]]:
    """The plug-ins of an installed distribution that there is a suite for; families are left out."""
    return [
        (group, info.name)
        for group in plugins.GROUPS
        if group in PROPERTIES or group in OF_PROMPTS
        for info in plugins.listing(group)
        if canonicalize_name(info.package) == canonicalize_name(distribution) and plugins.family(group, info.name) is None
    ]
