"""The encoder inside a classifier: images to vectors, without labels or head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.contracts import Target, WrappedTarget
from robustkd.lazy import F
from robustkd.targets.activations import last_linear, recorded

if TYPE_CHECKING:
    from torch import Tensor, nn


class EncoderTarget(WrappedTarget):
    """A classifier that answers with features: of one with an image tower those of the image, of any other what its last linear layer
    is given.

    Nobody who has it alone knows a class, so no input counts as adversarial, and a search goes on to its last step. A pass is one of the
    classifier that it is in.

    Args:
        target: the classifier.
        unit: give the features length 1.

    Raises:
        TargetError: the network has no linear layer.
    """

    never_adversarial = True

    def __init__(self, target: Target, *, unit: bool = True) -> None:
        super().__init__(target)
        self.unit = unit
        towers = _image_tower(target.module)
        self._layer, self._is_input = (last_linear(target.module), True) if towers is None else (towers, False)

    def __call__(self, inputs: Tensor) -> Tensor:
        """(B, *shape) -> (B, D), differentiable; of length 1 unless ``unit`` is false."""
        with recorded(self.target.module, [self._layer], inputs=self._is_input) as found:
            outputs = self.target(inputs)
        (features,) = found.taken(len(inputs))
        # From the output on, so that it is the whole backward pass that it is counted as.
        features = features.flatten(1) + 0 * outputs.sum(1, keepdim=True)
        return F.normalize(features, dim=1) if self.unit else features


def _image_tower(module: nn.Module) -> nn.Module | None:
    from robustkd.targets.tower_modules import WithImageTower  # late: it imports torch

    return next((part.image for part in module.modules() if isinstance(part, WithImageTower)), None)
