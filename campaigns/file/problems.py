"""What is wrong with a file that a user wrote: every problem with its line, its key and the fix, all at once."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from robustkd.campaigns.file.trained import trained_folder
from robustkd.campaigns.file.yaml_source import KeyPath, Source
from robustkd.contracts import UsageError, suggestion


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, at the key ``path``."""

    path: KeyPath
    message: str
    fix: str | None = None


Model = TypeVar("Model", bound=BaseModel)


def validated(
    model: type[Model], raw: object, path: KeyPath, folder: Path, problems: list[Problem], *, also: tuple[str, ...]
) -> Model | None:
    """What ``model`` makes of ``raw``, the value at ``path``; None when it makes nothing of it, and why is added to ``problems``.

    Args:
        folder: what relative paths are relative to.
        also: keys that are known there beside the model's own, for suggestions.
    """
    try:
        return model.model_validate(raw, context={"folder": folder, "trained": partial(trained_folder, home=folder)})
    except ValidationError as error:
        problems += problems_of(error, model, path, also)
        return None


def problems_of(error: ValidationError, model: type[BaseModel], prefix: KeyPath, also: tuple[str, ...] = ()) -> list[Problem]:
    """What pydantic complains about, at the keys below ``prefix``."""
    found = []
    for item in error.errors():
        # Markers of pydantic's end in a bracket; a key that the user made up may, too.
        path = tuple(part for part in item["loc"] if not str(part).endswith("]"))
        if item["type"] == "extra_forbidden":
            path = (*(part for part in item["loc"][:-1] if part in path), item["loc"][-1])
            known = [*_keys_at(model, path[:-1]), *(also if len(path) == 1 else ())]
            key = str(path[-1])
            found.append(Problem((*prefix, *path), "unknown key", close_to(key, known, _elsewhere(model, prefix, key))))
        elif item["type"] == "missing":
            found.append(Problem((*prefix, *path), "this key is missing", None))
        else:
            message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            given = item.get("input")
            shown = (
                f"{json.dumps(given, default=str)[:60]} is not allowed: " if isinstance(given, str | int | float | None) else ""
            )
            article = "" if item["type"] == "value_error" else "it should be "
            found.append(Problem((*prefix, *path), f"{shown}{article}{message}"))
    return found


def _keys_at(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """The keys that are known where ``path`` leads inside ``model``."""
    for part in path:
        field_info = model.model_fields.get(str(part))
        inner = [] if field_info is None else _models_in(field_info.annotation)
        if inner:
            model = inner[0]
    return list(model.model_fields)


def _elsewhere(model: type[BaseModel], prefix: KeyPath, key: str) -> str | None:
    """Where in ``model``, which is at ``prefix``, the key is known, in a clause: there, or below the first of its fields that has it."""
    if key in model.model_fields:
        where = f"a key of '{prefix[-1]}'" if prefix else "a key of the file itself, at its left margin"
        return f"'{key}' is {where}"
    for name, field_info in model.model_fields.items():
        if any(key in inner.model_fields for inner in _itself(field_info.annotation)):
            return f"'{key}' is a key of '{name}': write it below that"
    return None


def _itself(annotation: Any) -> list[type[BaseModel]]:
    """The models that a value may be, and not those that it may hold."""
    if get_origin(annotation) in (Union, UnionType):
        return [model for item in get_args(annotation) for model in _itself(item)]
    return _models_in(annotation) if isinstance(annotation, type) else []


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for item in getattr(annotation, "__args__", ()) for model in _models_in(item)]


def close_to(word: str, known: Collection[str], else_told: str | None = None) -> str:
    """The known name that was probably meant, or what is told instead, or all known names."""
    return suggestion(word, known) or else_told or f"known here: {', '.join(known)}"


def complaint(source: Source, problems: Sequence[Problem]) -> UsageError:
    """All problems of a file as one error."""
    lines = []
    for problem in problems:
        key = ".".join(str(part) if str(part).isprintable() else repr(part)[1:-1] for part in problem.path)
        lines.append(f"{source.place(problem.path)}: {key}: {problem.message}" + (f" ({problem.fix})" if problem.fix else ""))
    return UsageError("\n".join(lines), fix=f"correct {source.name} and run again; nothing was started")
