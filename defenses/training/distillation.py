"""A student of a frozen teacher on clean images: everything but the loss.

A method is a loss: a subclass of ``DistillationRecipe`` that a ``Distillation`` names. One that trains more than the student, or
has something to compute before, overrides ``prepare``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

from pydantic import Field

from robustkd.contracts import Defense, FitContext, ModelName, Target, TargetRef
from robustkd.contracts.params import ModelParams
from robustkd.defenses.training.epochs import train
from robustkd.defenses.training.networks import fresh_network
from robustkd.defenses.training.params import TrainParams
from robustkd.defenses.training.recipe import Recipe
from robustkd.defenses.training.teachers import Teacher, frozen_teacher
from robustkd.targets import ClassifierTarget

Prepared: TypeAlias = tuple[Recipe[ClassifierTarget], ClassifierTarget]
"""A loss, and the target whose weights it trains."""


class StudentParams(TrainParams):
    """Parameters of every student of one teacher."""

    teacher: TargetRef = Field(description="another defense; one of kind external or robustbench brings weights from elsewhere")
    student: ModelName = Field(description="the student's architecture: a model plug-in")
    student_params: ModelParams = Field(default_factory=dict)


class DistillationRecipe(Recipe[ClassifierTarget]):
    """A loss that a frozen teacher has a part in."""

    def __init__(self, teacher: Teacher, params: Any) -> None:
        self.teacher, self.params = teacher, params


class Distillation(Defense):
    """A student of a frozen teacher.

    Attributes:
        recipe: the loss.
    """

    recipe: ClassVar[Callable[..., Recipe[ClassifierTarget]]]

    def prepare(self, context: FitContext, teacher: Teacher, student: ClassifierTarget) -> Prepared:
        """The loss, and what is trained: the student, or a target that holds it (``with_auxiliary``).

        Args:
            context: data, seed and device.
            teacher: T, frozen.
            student: S, freshly initialised.
        """
        return self.recipe(teacher, self.params), student

    def fit(self, context: FitContext) -> Target:
        """Distil; the epoch is chosen on the validation data."""
        p = self.params
        with frozen_teacher(context, p.teacher, p) as teacher:
            student = fresh_network(context, p.student, p.student_params)
            recipe, trained = self.prepare(context, teacher, student)
            train(context, trained, recipe, p)
        return student
