"""A student of a frozen teacher on clean images: everything but the loss.

A method is a loss: a subclass of ``DistillationRecipe`` that a ``Distillation`` names. One that trains more than the student, or
has something to compute before, overrides ``prepare``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from pydantic import Field

from robustkd.contracts import FitContext, ModelName, TargetRef
from robustkd.contracts.params import ModelParams
from robustkd.defenses.training.one_network import OneNetwork, Prepared
from robustkd.defenses.training.params import TrainParams
from robustkd.defenses.training.recipe import Recipe
from robustkd.defenses.training.teachers import Teacher, frozen_teacher
from robustkd.targets import ClassifierTarget


class StudentParams(TrainParams):
    """Parameters of every student of one teacher."""

    teacher: TargetRef = Field(description="another defense; one of kind external or robustbench brings weights from elsewhere")
    student: ModelName = Field(description="the student's architecture: a model plug-in")
    student_params: ModelParams = Field(default_factory=dict)


class DistillationRecipe(Recipe[ClassifierTarget]):
    """A loss that a frozen teacher has a part in."""

    def __init__(self, teacher: Teacher, params: Any) -> None:
        self.teacher, self.params = teacher, params


class Distillation(OneNetwork):
    """A student of a frozen teacher.

    Attributes:
        recipe: the loss.
    """

    network = "student"
    recipe: ClassVar[Callable[..., Recipe[ClassifierTarget]]]

    def prepare(self, context: FitContext, teacher: Teacher, student: ClassifierTarget) -> Prepared:
        """The loss, and what is trained: the student, or a target that holds it (``with_auxiliary``).

        Args:
            context: data, seed and device.
            teacher: T, frozen.
            student: S.
        """
        return self.recipe(teacher, self.params), student

    @contextmanager
    def training(self, context: FitContext, student: ClassifierTarget) -> Iterator[Prepared]:
        """The loss beside the frozen teacher."""
        with frozen_teacher(context, self.params.teacher, self.params) as teacher:
            yield self.prepare(context, teacher, student)
