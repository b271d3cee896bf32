"""Plug-ins by name, found through entry points.

The built-in plug-ins are registered in ``entry_points/``, a file for each group, under the same groups that any installed package
may use. Listing reads package metadata only; a plug-in's module is imported when
its name is asked for, so one that is broken is reported by name and takes nothing else down.

An entry point may also name a *family*: an object with ``members()`` and ``member(name)``. ``torchattacks:PGD`` is the
member ``PGD`` of the family ``torchattacks``.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args, runtime_checkable

from robustkd.contracts.errors import PluginError, RobustkdError, UsageError, suggestion
from robustkd.contracts.plugin import registered_name
from robustkd.contracts.version import CHANGES, CONTRACT_VERSION, moved

Group = Literal[
    "attacks",
    "defenses",
    "judges",
    "checks",
    "analyses",
    "datasets",
    "models",
    "transforms",
    "detectors",
    "condensers",
    "targets",
    "engines",
]
GROUPS: tuple[Group, ...] = get_args(Group)
_UNKNOWN = "extra_forbidden"  # pydantic's name for it


@dataclass(frozen=True)
class PluginInfo:
    """A registered plug-in: its name, the package it comes from and where its code is. Nothing of it is imported."""

    group: Group
    name: str
    package: str
    package_version: str
    location: str


@runtime_checkable
class Family(Protocol):
    """Many plug-ins behind one entry point, addressed as ``family:member``."""

    def members(self) -> list[str]:
        """The names under which ``member`` finds a plug-in."""

    def member(self, name: str) -> type[Any]:
        """The plug-in class called ``name``; KeyError when there is none."""


def one_of(group: str) -> str:
    """The singular of a group's name: ``attack`` of ``attacks``, ``analysis`` of ``analyses``."""
    return "analysis" if group == "analyses" else group.removesuffix("s")


def names(group: Group) -> list[str]:
    """The registered names of a group, sorted; family members are not listed."""
    return sorted(_entry_points(group))


def listing(group: Group) -> list[PluginInfo]:
    """What is registered in a group, sorted by name, without importing any of it."""
    infos = []
    for name, point in sorted(_entry_points(group).items()):
        infos.append(PluginInfo(group, name, *_package(point.dist), point.value))
    return infos


_DOCUMENTED = re.compile(r'^class (\w+)\b[^\n]*:\n +"""(.+?)(?:"""|\n)', re.MULTILINE)
"""The name of a class and the first line of its docstring, where both stand as nearly all do."""


def summary(info: PluginInfo) -> str:
    """The first line of a plug-in's docstring (of its module's, for a family), read without importing it; "" where there is none."""
    module, _, name = info.location.partition(":")
    file = module_file(module)
    try:
        text = file.read_text(encoding="utf-8") if file else ""
        # To parse every file takes longer than all else that a listing does.
        found = next((one[2] for one in _DOCUMENTED.finditer(text) if one[1] == name), None)
        if found:
            return found
        tree = ast.parse(text)
    except (OSError, SyntaxError, ValueError):
        return ""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return (ast.get_docstring(classes[0] if classes else tree) or "").partition("\n")[0]


def paper(group: Group, name: str) -> str:
    """The paper of a plug-in's method as its class says it (``source``), read without importing it; "" where that is not said there."""
    point = _entry_points(group).get(name.partition(":")[0])
    return _paper(point.value) if point is not None else ""


@functools.cache
def _paper(location: str) -> str:
    module, _, name = location.partition(":")
    file = module_file(module)
    try:
        tree = ast.parse(file.read_text(encoding="utf-8")) if file else ast.Module([], [])
    except (OSError, SyntaxError, ValueError):
        return ""
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    return _attribute(classes, name, "source")


def _attribute(classes: dict[str, ast.ClassDef], name: str, attribute: str) -> str:
    """A text among the attributes of a class, its own or that of a base class in the same file; "" where there is none."""
    found = classes.pop(name, None)  # each is looked at once: a class may name itself among its bases
    for node in found.body if found else ():
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == attribute for to in node.targets):
            match node.value:
                case ast.Constant(value=str(text)):
                    return text
                case ast.Attribute(value=ast.Name(id=other), attr=other_attribute):  # another class's
                    return _attribute(classes, other, other_attribute)
            return ""
    bases = [base.id for base in found.bases if isinstance(base, ast.Name)] if found else []
    return next((text for base in bases if (text := _attribute(classes, base, attribute))), "")


def module_file(name: str, folders: Sequence[Path] = ()) -> Path | None:
    """The file of a module, found without importing it, in ``folders`` first; None where that is not possible."""
    # importlib.util.find_spec imports the parents of a dotted name.
    first, *rest = itertools.accumulate(name.split("."), "{}.{}".format)
    try:
        spec = PathFinder.find_spec(first, [*map(str, folders), *sys.path]) if folders else importlib.util.find_spec(first)
        for full in rest:
            inside = spec.submodule_search_locations if spec else None  # None of a module that is no package
            spec = PathFinder.find_spec(full, inside) if inside is not None else None
    except (ImportError, ValueError, KeyError):  # the last: a namespace package whose parent is not imported
        return None
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


def load(group: Group, name: str) -> type[Any]:
    """Import the plug-in class called ``name``; ``PluginError`` when it is unknown or its import fails."""
    head, colon, member = name.partition(":")
    points = _entry_points(group)
    singular = one_of(group)
    if head not in points:
        hint = suggestion(head, points)
        raise PluginError(f"unknown {singular} '{name}'", fix=hint or f"one of: {', '.join(points) or 'none is installed'}")
    loaded = _import(group, head)
    if isinstance(loaded, Family):
        if not colon:
            raise PluginError(
                f"'{name}' is a family of {group}, not one of them", fix=f"name a member, such as {head}:{loaded.members()[0]}"
            )
        try:
            plugin: type[Any] = loaded.member(member)
            return plugin
        except KeyError:
            members = loaded.members()
            hint = suggestion(member, members)
            raise PluginError(f"{head} has no {singular} '{member}'", fix=hint or f"one of: {', '.join(members)}") from None
    if colon:
        raise PluginError(f"unknown {singular} '{name}'", fix=f"'{head}' is a single {singular}; write '{head}'")
    single: type[Any] = loaded
    return single


def build(group: Group, name: str, params: Any) -> Any:
    """The plug-in called ``name`` with these parameters. The name is the object's: a class may be registered under several."""
    plugin = load(group, name)(params)
    plugin.name = name
    return plugin


def make(group: Group, spec: Mapping[str, Any]) -> Any:
    """The plug-in that a mapping of its ``kind`` and its parameters describes.

    Raises:
        PluginError: there is no such plug-in, or it cannot be imported.
        UsageError: a parameter is unknown or out of range.
    """
    from pydantic import ValidationError  # late: listing plug-ins must not wait for it

    kind = str(spec.get("kind", ""))
    plugin = load(group, kind)
    try:
        params = plugin.Params(**{key: value for key, value in spec.items() if key != "kind"})
        return build(group, kind, params)
    except ValidationError as error:
        # A parameter that is misspelt may be the one that is missing.
        first = min(error.errors(), key=lambda each: each["type"] != _UNKNOWN)
        key = ".".join(str(part) for part in first["loc"])
        known = list(plugin.Params.model_fields)
        listed = f"parameters of {kind}: {', '.join(known) or 'none'}"
        fix = f"see `robustkd describe {kind}`" if key in known else suggestion(key, known) or listed
        if group == "attacks" and key in ("eps", "epsilon", "norm"):
            fix = "the budget is given beside the attack: eps=.. and norm=.. in Python, --eps and --norm of a command"
        said = "there is no such parameter" if first["type"] == _UNKNOWN else first["msg"]
        raise UsageError(f"{one_of(group)} '{kind}': {key}: {said}", fix=fix) from None


def modalities(plugin: type[Any] | Family) -> tuple[str, ...]:
    """What a plug-in is for, as its class says: ``images``, ``text``, ``text-to-image``.

    Architectures, transforms and families of attacks are for images.
    """
    if hasattr(plugin, "modality"):
        return (plugin.modality,)
    return tuple(getattr(plugin, "modalities", ("images",)))


def is_built_in(group: Group, name: str) -> bool:
    """Whether a plug-in is one of robustkd's own. Nothing of it is imported."""
    point = _entry_points(group).get(name.partition(":")[0])
    return point is not None and point.module.partition(".")[0] == "robustkd"


def family(group: Group, name: str) -> Family | None:
    """The family called ``name``, or None when the name is a single plug-in."""
    loaded = _import(group, name)
    return loaded if isinstance(loaded, Family) else None


def refusal(group: Group, name: str) -> str | None:
    """What changed since the contract that the package of a plug-in says it is written for; None where it says none, or this one.

    A package says so by an entry point of the group ``robustkd.contract``: its name is the version.
    """
    dist = _entry_points(group)[name.partition(":")[0]].dist
    written_for = {point.name for point in dist.entry_points.select(group="robustkd.contract")} if dist else set()
    if not written_for or CONTRACT_VERSION in written_for:
        return None
    theirs = sorted(written_for)[-1]
    missed = [change for version, change in CHANGES.items() if theirs.isdecimal() and int(version) > int(theirs)]
    changes = "; ".join(missed) or "this release of robustkd is older than the plug-in"
    return f"{_package(dist)[0]} is written for contract {theirs}, robustkd has contract {CONTRACT_VERSION}: {changes}"


def refresh() -> None:
    """Forget which plug-ins were found and imported so far, so that newly installed ones are found."""
    _installed.cache_clear()
    _entry_points.cache_clear()
    _import.cache_clear()
    _paper.cache_clear()
    registered_name.cache_clear()


@functools.cache
def _installed() -> importlib.metadata.EntryPoints:
    """The entry points of all packages; finding them reads the metadata of every package."""
    return cast(importlib.metadata.EntryPoints, importlib.metadata.entry_points())


@functools.cache
def _entry_points(group: Group) -> dict[str, importlib.metadata.EntryPoint]:
    points = _installed().select(group=f"robustkd.{group}")
    # Ours last: no package that happens to be installed takes the place of a built-in by its name.
    return {point.name: point for point in sorted(points, key=lambda point: _package(point.dist)[0] == "robustkd")}


@functools.cache
def _package(dist: importlib.metadata.Distribution | None) -> tuple[str, str]:
    """Name and version of a package; reading them parses all of its metadata."""
    return (dist.name, dist.version) if dist else ("unknown", "")


@functools.cache
def _import(group: Group, name: str) -> Any:
    point = _entry_points(group)[name]
    package = _package(point.dist)[0]
    try:
        return point.load()
    except RobustkdError:
        raise
    except Exception as error:
        if (names := moved(error)) and package != "robustkd":
            former, now = names
            raise PluginError(
                f"{one_of(group)} '{name}' of package {package} is written for a former contract of robustkd "
                f"(now {CONTRACT_VERSION}): it imports {former}, which is {now} now",
                fix=f"write {now} in the import; docs/what-you-may-import.md names what has moved",
            ) from error
        raise PluginError(
            f"{one_of(group)} '{name}' of package {package} cannot be imported: {type(error).__name__}: {error}",
            fix=f"repair or uninstall {package}; every other plug-in still works",
        ) from error
