"""Classes whose images a training never sees, so that what it does to them can be asked afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from robustkd.contracts import Defense, FitContext, UsageError, suggestion
from robustkd.defenses.training import TrainParams

HeldOut = Annotated[
    tuple[int | str, ...],
    Field(description="classes, by name or number, no image of which this training sees, in training or in validation"),
]


class HeldOutParams(TrainParams):
    """Training parameters, and the classes that are kept from it."""

    held_out: HeldOut = ()


class HeldOutDefense(Defense):
    """A defense from whose training classes can be kept.

    Attributes:
        reads_texts: whether it makes texts of the classes' names.
    """

    reads_texts: ClassVar[bool] = False

    @property
    def reads_class_names(self) -> bool:
        """Where texts are made of them, or a class that is held out is given by its name."""
        return self.reads_texts or any(isinstance(name, str) for name in self.params.held_out)


def without_classes(context: FitContext, held_out: tuple[int | str, ...]) -> FitContext:
    """The context without the images of these classes; all classes keep their numbers.

    Raises:
        UsageError: there is no such class, or none is left.
    """
    if not held_out:
        return context
    names = context.classes or tuple(str(number) for number in range(context.num_classes))
    known = {name.lower(): number for number, name in enumerate(names)}
    known |= {str(number): known.get(str(number), number) for number in range(context.num_classes)}
    missing = [str(name) for name in held_out if str(name).lower() not in known]
    if missing:
        fix = suggestion(missing[0], names) or f"one of: {', '.join(names)}"
        raise UsageError(f"held_out: the data have no class '{missing[0]}'", fix=fix)
    away = sorted(known[str(name).lower()] for name in held_out)
    parts = {}
    for name in ("train", "validation"):
        part = getattr(context, name)
        rows = np.flatnonzero(~np.isin(part.labels, away))
        if not len(rows):
            raise UsageError(f"held_out names every class of the {name} data", fix="leave some to train on")
        parts[name] = part.select(rows)
    return replace(context, **parts)
