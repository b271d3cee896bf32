"""What every image classifier is asked, however it comes to its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from robustkd.contracts import Target, TargetError
from robustkd.contracts.target import Bounds
from robustkd.lazy import torch
from robustkd.targets.activations import layer_outputs
from robustkd.targets.failure import model_errors_explained
from robustkd.targets.layout import contiguous_gradient, first, is_laid_out, restore_layout

if TYPE_CHECKING:
    from torch import Tensor, nn


class ImageTarget(Target):
    """A classifier of images in ``bounds``; a subclass knows how to build its module again.

    Args:
        module: (B, C, H, W) in ``bounds`` -> (B, K).
        num_classes: K.
        input_shape: (C, H, W).
        bounds: the range of valid pixels.

    Attributes:
        classes: the K classes' names, where somebody must know them (a judge of images); else None.
    """

    classes: tuple[str, ...] | None = None

    def __init__(
        self,
        module: nn.Module,
        *,
        num_classes: int,
        input_shape: Sequence[int],
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        from robustkd.targets.modules import ClassesAlone, WithoutGradients  # late: it imports torch

        self.module = module
        if any(isinstance(part, WithoutGradients) for part in module.modules()):
            self.capabilities -= {"gradients"}
        if any(isinstance(part, ClassesAlone) for part in module.modules()):
            self.capabilities -= {"logits"}
        self.num_classes = num_classes
        self.input_shape = tuple(input_shape)
        self.bounds = bounds

    def to(self, device: torch.device | str) -> Self:
        """See ``BaseTarget.to``; bounds that are tensors go with the weights."""
        low, high = self.bounds
        if isinstance(low, torch.Tensor) and isinstance(high, torch.Tensor):
            self.bounds = low.to(device), high.to(device)
        return super().to(device)

    def __call__(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) in ``bounds`` -> (B, K) logits.

        Images and weights may differ in precision: the images are cast for the network, and losses are computed in the
        precision of the images, or of the logits where that is higher. Of an empty batch the network is not asked: some cannot
        reshape one.

        Raises:
            TargetError: the network raised, or its output has another shape.
        """
        if not len(inputs):
            return inputs.flatten(1).sum(1, keepdim=True).expand(-1, self.num_classes)
        with model_errors_explained(inputs):
            logits = self.answer(inputs)
        if not isinstance(logits, torch.Tensor) or logits.shape != (len(inputs), self.num_classes):
            shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            fix = f"return one row of {self.num_classes} logits for each image"
            if isinstance(logits, torch.Tensor) and logits.shape in ((len(inputs),), (len(inputs), 1)):
                fix = (
                    "of two classes, give two logits: from one, z, torch.stack([torch.zeros_like(z), z], dim=-1).reshape(-1, 2)"
                )
            elif isinstance(logits, torch.Tensor) and logits.shape[1:] == (self.num_classes - 1,):
                fix += (
                    f", or number the labels from 0: where they are 1 to {self.num_classes - 1}, one class too many is counted"
                )
            elif isinstance(logits, torch.Tensor) and logits.ndim == 2 and logits.shape[1] > self.num_classes:
                fix += (
                    f", or say how many the model has (`num_classes: {logits.shape[1]}` of an `external` defense), or which of them "
                    "are the data's (`classes: [..]`)"
                )
            raise TargetError(
                f"the model returned {shape} for a batch of {len(inputs)}, expected ({len(inputs)}, {self.num_classes})",
                fix=fix,
            )
        return logits.to(torch.promote_types(logits.dtype, inputs.dtype))

    def answer(self, inputs: Tensor) -> Any:
        """What the network returns for (B, *input_shape), whatever that is."""
        weight = first(self.module, _floating)
        inputs = inputs if weight is None else inputs.to(weight.dtype)
        # Of one channel, either order is contiguous.
        if inputs.requires_grad and inputs.shape[1] > 1 and is_laid_out(self.module):
            inputs = contiguous_gradient(inputs)
        try:
            return self.module(inputs.clone())  # some networks normalise in place
        except RuntimeError:
            if not restore_layout(self.module):
                raise
            return self.module(inputs.clone())

    def features(self, inputs: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """The outputs of named submodules, as forward hooks see them.

        Raises:
            TargetError: there is no submodule of that name.
        """
        return layer_outputs(self, inputs, layers)


def _floating(module: nn.Module) -> nn.Parameter | None:
    return next((weight for weight in module._parameters.values() if weight is not None and weight.is_floating_point()), None)
