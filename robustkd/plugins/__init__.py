"""Plug-ins by name, plug-ins as parameters of others, and the files they are made of. Importing it imports no plug-in."""

from robustkd.plugins.registry import (
    GROUPS,
    Family,
    Group,
    PluginInfo,
    build,
    family,
    listing,
    load,
    make,
    modalities,
    module_file,
    names,
    one_of,
    refresh,
    refusal,
    summary,
)

__all__ = [
    "GROUPS",
    "Family",
    "Group",
    "PluginInfo",
    "build",
    "family",
    "listing",
    "load",
    "make",
    "modalities",
    "module_file",
    "names",
    "one_of",
    "refresh",
    "refusal",
    "summary",
]
