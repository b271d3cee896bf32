"""What every image classifier is asked, however it comes to its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from robustkd.contracts import Target, TargetError
from robustkd.lazy import torch
from robustkd.targets.failure import failures_told
from robustkd.targets.layout import as_found, contiguous_on_the_way_back, is_laid_out

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
        bounds: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.module = module
        self.num_classes = num_classes
        self.input_shape = tuple(input_shape)
        self.bounds = bounds

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
        weight = next((tensor for tensor in self.module.parameters() if tensor.is_floating_point()), inputs)
        with failures_told(inputs):
            logits = self._answer(inputs.to(weight.dtype))
        if not isinstance(logits, torch.Tensor) or logits.shape != (len(inputs), self.num_classes):
            shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            fix = f"return one row of {self.num_classes} logits for each image"
            if isinstance(logits, torch.Tensor) and logits.ndim == 2 and logits.shape[1] > self.num_classes:
                fix += f", or say how many the model has (`num_classes: {logits.shape[1]}` of an `external` defense)"
            raise TargetError(
                f"the model returned {shape} for a batch of {len(inputs)}, expected ({len(inputs)}, {self.num_classes})",
                fix=fix,
            )
        return logits.to(torch.promote_types(logits.dtype, inputs.dtype))

    def _answer(self, inputs: Tensor) -> Any:
        if inputs.requires_grad and is_laid_out(self.module):
            inputs = contiguous_on_the_way_back(inputs)
        try:
            return self.module(inputs)
        except RuntimeError:
            if not as_found(self.module):
                raise
            return self.module(inputs)

    def features(self, inputs: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """The outputs of named submodules, as forward hooks see them.

        Raises:
            TargetError: there is no submodule of that name.
        """
        captured: dict[str, Tensor] = {}
        modules = dict(self.module.named_modules())
        missing = [layer for layer in layers if layer not in modules]
        if missing:
            raise TargetError(f"the model has no layer {missing[0]!r}", fix=f"one of: {', '.join(n for n in modules if n)}")

        def keep(layer: str) -> Any:
            def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
                captured[layer] = output

            return hook

        hooks = [modules[layer].register_forward_hook(keep(layer)) for layer in layers]
        try:
            self(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return captured
