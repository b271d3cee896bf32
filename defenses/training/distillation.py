"""A student of a frozen teacher on clean images: everything but the loss.

A method is a loss: a subclass of ``DistillationRecipe`` that a ``Distillation`` names. What a method trains beside its student is a
part of the trained module (``beside``) where it goes down the student's own loss, and a ``Companion`` where it has a loss of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from robustkd.contracts import Defense, FitContext, ModelName, Target, TargetRef
from robustkd.defenses.training.batches import Together
from robustkd.defenses.training.loop import train
from robustkd.defenses.training.networks import fresh_network
from robustkd.defenses.training.params import TrainParams
from robustkd.defenses.training.recipe import Recipe
from robustkd.defenses.training.teachers import Teacher, teaching
from robustkd.lazy import nn, torch
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class StudentParams(TrainParams):
    """Parameters of every student of one teacher."""

    teacher: TargetRef = Field(description="another defense; one of kind external or robustbench brings weights from elsewhere")
    student: ModelName = Field(description="the student's architecture: a model plug-in")
    student_params: dict[str, Any] = Field(default_factory=dict, description="its parameters")


class DistillationRecipe(Recipe[ClassifierTarget]):
    """A loss that a frozen teacher has a part in."""

    def __init__(self, teacher: Teacher, params: Any) -> None:
        self.teacher, self.params = teacher, params


class Distillation(Defense):
    """A student of a frozen teacher.

    Attributes:
        recipe: the loss.
    """

    recipe: ClassVar[type[DistillationRecipe]]

    def fit(self, context: FitContext) -> Target:
        """Distil; the epoch is chosen by validation accuracy."""
        p = self.params
        with teaching(context, p.teacher, p) as teacher:
            return train(context, fresh_network(context, p.student, p.student_params), self.recipe(teacher, p), p)


def beside(student: ClassifierTarget, **parts: nn.Module) -> ClassifierTarget:
    """What is trained in the student's place; the student holds the same weights, and is what is deployed."""
    from robustkd.defenses.training.modules import Beside  # late: it imports torch

    return ClassifierTarget(
        Beside(student.module, parts),
        num_classes=student.num_classes,
        input_shape=student.input_shape,
        bounds=student.bounds,
    )


class Companion:
    """A network with a loss and an optimiser (Adam) of its own, which belong to the checkpoint: a recipe's ``tensors``.

    Args:
        module: on the training's device.
        lr: its learning rate.
    """

    def __init__(self, module: nn.Module, lr: float) -> None:
        self.module = module
        self.optimiser = torch.optim.Adam(module.parameters(), lr)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The network's output."""
        output: Tensor = self.module(*inputs)
        return output

    def minimise(self, loss: Tensor, together: Together) -> None:
        """One step down ``loss``; no other network gets a gradient."""
        weights = list(self.module.parameters())
        gradients = torch.autograd.grad(loss, weights)
        together(gradients)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, and the optimiser's state of each."""
        state = {f"weights/{name}": tensor for name, tensor in self.module.state_dict().items()}
        for number, values in self.optimiser.state_dict()["state"].items():
            state |= {f"optimiser/{number}/{name}": tensor for name, tensor in values.items()}
        return state

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The same."""
        self.module.load_state_dict(
            {name.removeprefix("weights/"): tensor for name, tensor in tensors.items() if name.startswith("weights/")}
        )
        state: dict[int, dict[str, Tensor]] = {}
        for path, tensor in tensors.items():
            if path.startswith("optimiser/"):
                _, number, name = path.split("/")
                # Adam's step counts stay on the host.
                state.setdefault(int(number), {})[name] = tensor.cpu() if name == "step" else tensor
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": state})


class Accompanied:
    """For a recipe whose tensors are those of its companion.

    Attributes:
        companion: the name of the recipe's attribute that holds it.
    """

    companion: ClassVar[str]

    def tensors(self) -> dict[str, Tensor]:
        """The companion's."""
        companion: Companion = getattr(self, self.companion)
        return companion.tensors()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The companion's."""
        companion: Companion = getattr(self, self.companion)
        companion.load_tensors(tensors)
