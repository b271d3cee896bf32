"""Plug-ins by name, plug-ins as parameters of others, and the files they are made of. Importing it imports no plug-in."""

from robustkd.plugins.registry import (
    GROUPS,
    Family,
    Group,
    PluginInfo,
    family,
    is_built_in,
    listing,
    load,
    make,
    modalities,
    module_file,
    name_of,
    names,
    one_of,
    refresh,
    summary,
)

__all__ = [
    "GROUPS",
    "Family",
    "Group",
    "PluginInfo",
    "family",
    "is_built_in",
    "listing",
    "load",
    "make",
    "modalities",
    "module_file",
    "name_of",
    "names",
    "one_of",
    "refresh",
    "summary",
]
