"""Parameters of a peer's attack, derived from its constructor."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import Field, create_model

from robustkd.contracts import Params

_SIMPLE = (int, float, bool, str, NoneType)


def derived_params(attack: type[Any], *, given: Collection[str], real: Collection[str] = ()) -> type[Params]:
    """A ``Params`` with the constructor's arguments, their defaults, and the descriptions from its docstring.

    Args:
        attack: the peer's class.
        given: arguments that robustkd sets itself (the model, the budget, the norm, the seed).
        real: arguments that take real numbers although their default is a whole one.

    Arguments of other types than numbers, strings and flags (callbacks, nested attacks) keep the peer's default.
    """
    hints = get_type_hints(attack.__init__)
    texts = _descriptions(attack)
    fields: dict[str, Any] = {}
    for name, argument in list(inspect.signature(attack.__init__).parameters.items())[1:]:
        required = argument.default is inspect.Parameter.empty
        annotation = hints.get(name) or _type_of(argument.default, real=name in real)
        if name not in given and _is_simple(annotation):
            fields[name] = (annotation, Field(... if required else argument.default, description=texts.get(name)))
    return create_model(f"{attack.__name__}Params", __base__=Params, **fields)


def _type_of(default: Any, *, real: bool) -> Any:
    if isinstance(default, tuple | list):
        return tuple[tuple(_type_of(item, real=real) for item in default)]  # type: ignore[misc]
    return float if real else type(default)


def _is_simple(annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin is Literal:
        return True
    if origin in (Union, UnionType, tuple):
        return all(_is_simple(argument) for argument in get_args(annotation))
    return annotation in _SIMPLE


def _descriptions(attack: type[Any]) -> dict[str, str]:
    # Both peers write "name (type) : text" or "name : text", one argument a paragraph.
    found: dict[str, str] = {}
    for kind in attack.__mro__[:-1]:
        paragraphs = re.findall(r"^ +(\w+)(?: \([^)]*\))? ?: +(.+(?:\n {12,}.+)*)", kind.__doc__ or "", flags=re.MULTILINE)
        for name, text in paragraphs:
            found.setdefault(name, re.sub(r" *\(Default:.*", "", " ".join(text.split())))
    return found


def source_of(attack: type[Any]) -> str:
    """The first link to a paper in the documentation of a class or its bases."""
    for kind in attack.__mro__[:-1]:
        link = re.search(r"https?://[^\s\]>)]+", kind.__doc__ or "")
        if link:
            return link.group().rstrip(".`_")
    return ""
