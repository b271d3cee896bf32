"""Networks that are trained along with a student.

One that goes down the student's own loss is a part of the trained module (``with_auxiliary``); one with a loss of its own is an
``AuxiliaryNetwork``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from robustkd.defenses.training.batches import AllReduce
from robustkd.defenses.training.checkpoint import group, grouped
from robustkd.defenses.training.optim import load_optimiser_tensors, optimiser_tensors
from robustkd.lazy import nn, torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.training import adam, training_step

if TYPE_CHECKING:
    from torch import Tensor


def with_auxiliary(student: ClassifierTarget, **parts: nn.Module) -> ClassifierTarget:
    """A target whose module holds the student and ``parts``, to be trained in the student's place.

    It answers as the student, which holds the same weights and is what is deployed.
    """
    from robustkd.defenses.training.modules import WithAuxiliary  # late: it imports torch

    return ClassifierTarget(
        WithAuxiliary(student.module, parts),
        num_classes=student.num_classes,
        input_shape=student.input_shape,
        bounds=student.bounds,
    )


class AuxiliaryNetwork:
    """A network with a loss and an optimiser of its own; both belong to the checkpoint (see ``Recipe.auxiliary``).

    Args:
        module: on the training's device.
        lr: its learning rate.
        optimiser: of the module's parameters; default Adam.
    """

    def __init__(self, module: nn.Module, lr: float, optimiser: torch.optim.Optimizer | None = None) -> None:
        self.module, self.lr = module, lr
        self.optimiser = optimiser or adam(module.parameters(), lr)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Give the network's output for ``inputs``."""
        output: Tensor = self.module(*inputs)
        return output

    def minimise(self, loss: Tensor, all_reduce: AllReduce) -> None:
        """Take one step down ``loss``; no other network gets a gradient.

        Args:
            loss: a scalar.
            all_reduce: the minibatch's.
        """

        def backward() -> None:
            weights = list(self.module.parameters())
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            all_reduce([gradient for gradient in gradients if gradient is not None])
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient

        training_step(self.optimiser, self.lr, backward)
        self.optimiser.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The weights, and the optimiser's state."""
        return grouped("weights", self.module.state_dict()) | grouped("optimiser", optimiser_tensors(self.optimiser))

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore weights and optimiser from what ``tensors`` gave."""
        self.module.load_state_dict(group("weights", tensors))
        load_optimiser_tensors(self.optimiser, group("optimiser", tensors))
