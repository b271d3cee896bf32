"""What makes two cells the same: a hash over everything that changes their numbers, and over nothing else."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from robustkd import plugins
from robustkd.contracts import Analysis, BaseAttack, Defense, Judge, StoreError, ThreatModel, inner_params, named_plugins
from robustkd.contracts.json_value import JsonObject, JsonValue
from robustkd.contracts.plugin import Plugin
from robustkd.plugins.nested import PluginSpec
from robustkd.plugins.sources import source_files

Identity = JsonObject
"""What makes a cell, or a plug-in, the one that it is: JSON values by the names of its parts."""


def digest(*parts: Any) -> str:
    """A short hash (128 bits) of plain JSON values; key order does not matter."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def identified(kind: str, parts: Mapping[str, Any]) -> str:
    """The id of a cell: of its kind, and of the parts in their order; what they are called does not count."""
    return digest(kind, *parts.values())


@dataclass(frozen=True)
class PluginIdentity:
    """A plug-in's name, version and parameters; of one that is not robustkd's own also a hash of its source."""

    kind: str
    version: str
    params: dict[str, JsonValue]
    source: str | None = None

    def to_json(self) -> dict[str, JsonValue]:
        """As a part of a cell's identity."""
        source: dict[str, JsonValue] = {"source": self.source} if self.source else {}
        return {"kind": self.kind, "version": self.version, "params": self.params, **source}


def plugin_identity(kind: str, plugin: Any, threat: ThreatModel | None = None) -> PluginIdentity:
    """What makes a plug-in the one that it is, under ``threat``.

    Files that it reads count by their content, not by where they lie.
    """
    params = plugin.params.model_dump(mode="json", by_alias=True)  # under the names that they had at first
    reads = isinstance(plugin, Analysis | BaseAttack | Defense | Judge)
    contents = {str(file): content_hash(file) for file in plugin.files()} if reads else {}
    if contents or isinstance(plugin, Defense):
        params = _replaced(params, contents) | {"files": sorted(contents.values())}
    sources = plugin_sources(plugin)
    source = digest([content_hash(file) for file in sources]) if sources else None
    version = plugin.version if threat is None else plugin.version_for(threat)
    if not isinstance(plugin, BaseAttack):  # an attack around others carries their versions in its own
        version = "/".join([version, *_inner_versions(plugin.params, threat)])
    return PluginIdentity(kind, version, params, source)


def hashes_of_files(identity: Identity) -> list[str]:
    """The hashes of the files that the plug-in of a cell reads, from the cell's identity."""
    plugin = identity.get("plugin")
    params = plugin.get("params") if isinstance(plugin, Mapping) else None
    files = params.get("files") if isinstance(params, Mapping) else None
    return [str(file) for file in files] if isinstance(files, list) else []


def plugin_sources(plugin: Any) -> list[Path]:
    """The source files of a plug-in and of those that its parameters name; of robustkd's own, whose version counts, none."""
    classes = {type(plugin), *_named_classes(plugin.params)}
    files = {Path(file) for cls in classes if not _is_built_in(cls) and (file := sys.modules[cls.__module__].__file__)}
    return sorted({source for file in files for source in source_files(file, with_package=True)})


def _named_classes(params: BaseModel) -> Iterator[type[Any]]:
    for _, group, name in named_plugins(params):
        if not plugins.is_built_in(cast(plugins.Group, group), name):  # a network's own module imports torch
            yield plugins.load(cast(plugins.Group, group), name)
    for field in type(params).model_fields:
        for inner in inner_params(getattr(params, field)):
            if isinstance(inner, PluginSpec):
                yield plugins.load(inner.group, inner.kind)
                yield from _named_classes(inner.params)
            else:
                yield from _named_classes(inner)


def _inner_versions(params: BaseModel, threat: ThreatModel | None) -> Iterator[str]:
    """The versions of the plug-ins inside of parameters, but for those that never had another: what they change, changes the outcome."""
    for field in type(params).model_fields:
        for inner in inner_params(getattr(params, field)):
            if not isinstance(inner, PluginSpec):
                yield from _inner_versions(inner, threat)
                continue
            made = inner.make()
            version = made.version if threat is None else made.version_for(threat)
            if version != Plugin.version:
                yield version
            if not isinstance(made, BaseAttack):
                yield from _inner_versions(inner.params, threat)


def _is_built_in(cls: type[Any]) -> bool:
    return cls.__module__.partition(".")[0] == "robustkd"


def resolve_references(params: Any, names: dict[str, str]) -> Any:
    """``params`` with the names of other defenses replaced by what they stand for."""
    return _replaced(params, names)


def _replaced(value: Any, by: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(item, by) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, by) for item in value]
    return by.get(value, value) if isinstance(value, str) else value


def relative(file: Path, folder: Path) -> str:
    """What a file is called beside a campaign in ``folder``; its absolute path where it lies elsewhere."""
    return str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)


def content_hash(file: Path) -> str:
    """The SHA-256 of a file.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        with file.open("rb") as opened:  # not at once: the weights of a large model are gigabytes
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"{file} cannot be read: {error.strerror}", fix="correct the path in the campaign file") from error
