"""Which plug-ins are of one kind, told by where robustkd keeps them: nothing is imported for it."""

from __future__ import annotations

from robustkd.plugins import PluginInfo

_OF = {"image": "images", "text": "language models", "diffusion": "text-to-image models", "adapters": "through other packages"}


def family(info: PluginInfo) -> tuple[str, ...]:
    """The folders of robustkd's own plug-in, such as ``("image", "gradient")``; its package, of another one's."""
    if info.package != "robustkd":
        return (info.package,)
    return tuple(info.location.partition(":")[0].split(".")[2:-1])


def heading(group: str, of: tuple[str, ...]) -> str:
    """What a family is called in a list; "" where the group has none."""
    if not of:
        return ""
    first, *rest = of
    named = ", ".join([_OF.get(first, first), *(part.replace("_", " ") for part in rest)])
    return f"{group}: {named}"


def siblings(info: PluginInfo, listing: list[PluginInfo]) -> list[str]:
    """The names of the plug-ins of a group in the same family, itself among them."""
    return [other.name for other in listing if family(other) == family(info)]
