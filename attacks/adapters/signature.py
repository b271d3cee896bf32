"""Parameters of a peer's attack, derived from its constructor, or from the function that it is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType, NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import Field, create_model

from robustkd.contracts import Params
from robustkd.contracts.threat import Norm

_SIMPLE = (int, float, bool, str, NoneType)


CHOSEN_NORM: dict[str, Any] = {
    "norm": (Norm | None, Field(None, description="the norm to minimise; by default the threat model's"))
}
"""The parameter of a minimum-norm attack that can minimise one of several."""


def derived_params(
    attack: Callable[..., Any],
    *,
    given: Collection[str],
    real: Collection[str] = (),
    more: Mapping[str, Any] = MappingProxyType({}),
) -> type[Params]:
    """A ``Params`` with the attack's arguments, their defaults, and the descriptions from its docstring.

    Args:
        attack: the peer's class or function.
        given: arguments that robustkd sets itself (the model, the budget, the norm, the seed).
        real: arguments that take real numbers although their default or their annotation says otherwise.
        more: further parameters, as ``pydantic.create_model`` takes them, or others in the place of arguments.

    Arguments of other types than numbers, strings and flags (callbacks, nested attacks) keep the peer's default.
    """
    hints, texts = _hints(attack), _descriptions(attack)
    fields: dict[str, Any] = {}
    for name, argument in inspect.signature(attack).parameters.items():
        required = argument.default is inspect.Parameter.empty
        annotation = float if name in real else hints.get(name) or _type_of(argument.default)
        if name not in given and _is_simple(annotation):
            fields[name] = (annotation, Field(... if required else argument.default, description=texts.get(name)))
    return create_model(f"{attack.__name__}Params", __base__=Params, **(fields | dict(more)))


def _hints(attack: Callable[..., Any]) -> dict[str, Any]:
    function: Any = inspect.getattr_static(attack, "__init__") if isinstance(attack, type) else attack
    found: dict[str, Any] = {}
    for name, written in getattr(function, "__annotations__", {}).items():
        try:
            found |= get_type_hints(SimpleNamespace(__annotations__={name: written}), getattr(function, "__globals__", {}))
        except (NameError, TypeError):  # it is imported for type checkers alone
            found[name] = Any
    return found


def _type_of(default: Any) -> Any:
    if isinstance(default, tuple | list):
        return tuple[tuple(_type_of(item) for item in default)]  # type: ignore[misc]
    return type(default)


def _is_simple(annotation: Any) -> bool:
    origin = get_origin(annotation)
    if origin is Literal:
        return True
    if origin in (Union, UnionType, tuple):
        return all(_is_simple(argument) for argument in get_args(annotation))
    return annotation in _SIMPLE


def _documentation(attack: Callable[..., Any]) -> list[str]:
    parts = (
        [part for kind in attack.__mro__[:-1] for part in (kind, vars(kind).get("__init__"))]
        if isinstance(attack, type)
        else [attack]
    )
    return [part.__doc__ for part in parts if part is not None and part.__doc__]


_ARGUMENT = (
    r"^ +(\w+)(?: \([^)]*\))? ?: +(.+(?:\n {12,}.+)*)",  # foolbox and torchattacks: "name (type) : text" or "name : text"
    r"^ +:param (\w+): +(.+(?:\n {12,}\w.*)*)",  # ART
    r"^    (\w+) ?: \w.*\n((?: {8,}.+\n?)+)",  # adversarial-library, as in NumPy: "name : type", then the text
)


def _descriptions(attack: Callable[..., Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in _documentation(attack):
        for style in reversed(_ARGUMENT):
            for name, said in re.findall(style, text, flags=re.MULTILINE):
                found.setdefault(name, re.sub(r" *\(Default:.*", "", " ".join(said.split())))
    return found


def source_of(attack: Callable[..., Any]) -> str:
    """The first link to a paper in the documentation of a class, its bases or a function."""
    for text in _documentation(attack):
        link = re.search(r"https?://[^\s\]>)]+", text)
        if link:
            return link.group().rstrip(".`_")
    return ""
