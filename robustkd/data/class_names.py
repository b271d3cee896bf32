"""Which of a model's outputs a folder's or a file's class is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from robustkd.contracts import DataError


@dataclass(frozen=True)
class ClassNames:
    """The K classes of a model.

    Attributes:
        index: of each class, by what it is called in the data (its folder's name).
        names: of the K classes, by index, as they are shown.
    """

    index: Mapping[str, int]
    names: tuple[str, ...]

    @classmethod
    def of(cls, given: str | Path | None, found: Sequence[str]) -> ClassNames:
        """The classes that ``given`` describes, for data that call their classes ``found``.

        Args:
            given: None, and the classes are those found, in alphabetical order; ``imagenet``, found by their WordNet numbers or names;
                ``imagenet-1001``, the same behind a first output for the background; ``numbers``, found by their indices; or a file, see
                ``read``.

        Raises:
            DataError: the file cannot be read, or a class that was found is not in it.
        """
        if given is None:
            return cls({name: place for place, name in enumerate(sorted(found))}, tuple(sorted(found)))
        if given == "numbers":
            return cls._numbers(found)
        made = cls._of_lines(_imagenet(given)) if given in ("imagenet", "imagenet-1001") else cls.read(Path(given))
        if strange := [name for name in found if name not in made.index]:
            raise DataError(
                f"'{strange[0]}' is not one of the classes of {given}"
                + (f", nor are {len(strange) - 1} more" * (len(strange) > 1)),
                fix="take another mapping, or take what has no class in it out of the data",
            )
        return made

    @classmethod
    def read(cls, file: Path) -> ClassNames:
        """A mapping from a file.

        It is JSON, as ``{"n01440764": 0}`` or ``{"0": ["n01440764", "tench"]}``; or text with a class a line, in the order of the model's
        outputs: what it is called in the data, and after a blank, if there is one, its readable name.

        Raises:
            DataError: it is missing, or none of these.
        """
        try:
            text = file.read_text(encoding="utf-8")
            if file.suffix.lower() != ".json":
                return cls._of_lines(text.splitlines())
            return cls._of_json(json.loads(text))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise DataError(
                f"{file} holds no classes: {error}",
                fix='write a class a line, in the order of the model\'s outputs, or JSON such as {"n01440764": 0}',
            ) from error

    @classmethod
    def _of_lines(cls, lines: Sequence[str]) -> ClassNames:
        rows = [line.strip().partition(" ") for line in lines if line.strip()]
        if len({key for key, _, _ in rows}) < len(rows):
            raise ValueError("a class is there twice")
        index = {key: place for place, (key, _, _) in enumerate(rows)}
        return cls(_with_names(index, names := tuple(name.strip() or key for key, _, name in rows)), names)

    @classmethod
    def _of_json(cls, content: Any) -> ClassNames:
        if not isinstance(content, dict) or not content:
            raise ValueError("it is no JSON object with entries")
        if all(isinstance(value, int) for value in content.values()):
            index = dict(content)
            names = {place: key for key, place in index.items()}
        else:
            rows = {int(place): [value] if isinstance(value, str) else list(value) for place, value in content.items()}
            index = {str(row[0]): place for place, row in rows.items()}
            names = {place: str(row[-1]) for place, row in rows.items()}
        if min(index.values()) < 0:
            raise ValueError("an index is below 0")
        listed = tuple(names.get(place, str(place)) for place in range(1 + max(index.values())))
        return cls(_with_names(index, listed), listed)

    @classmethod
    def _numbers(cls, found: Sequence[str]) -> ClassNames:
        if strange := [name for name in found if not name.isdecimal()]:
            raise DataError(f"'{strange[0]}' is no number", fix="leave out 'classes: numbers', or rename what holds the class")
        index = {name: int(name) for name in found}
        return cls(index, tuple(str(place) for place in range(1 + max(index.values(), default=-1))))


def _imagenet(given: str | Path) -> list[str]:
    """ImageNet's classes, a line each; networks that were trained with TensorFlow have one more output, the first."""
    lines = resources.files("robustkd.data").joinpath("imagenet.txt").read_text("utf-8").splitlines()
    return ["background", *lines] if given == "imagenet-1001" else lines


def _with_names(index: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    """The classes also by their readable names, where these are one class's alone."""
    alone = {name: place for place, name in enumerate(names) if names.count(name) == 1}
    return {**alone, **index}
