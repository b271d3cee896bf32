"""The encoder inside a classifier: images to vectors, without labels or head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robustkd.contracts import Target, TargetError, WrappedTarget
from robustkd.lazy import F, torch
from robustkd.targets.activations import input_hooks, last_linear, output_hooks

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
        self.rejects = False  # none of the features is an output that says so
        towers = _image_tower(target.module)
        self._layer, self._is_input = (last_linear(target.module), True) if towers is None else (towers, False)

    def __call__(self, inputs: Tensor) -> Tensor:
        """(B, *shape) -> (B, D), differentiable; of length 1 unless ``unit`` is false.

        Raises:
            TargetError: the layer gives other than one row for each input.
        """
        root, seen = self.target.module, _Passes()
        watched = (
            input_hooks([self._layer], [seen.of_input]) if self._is_input else output_hooks([self._layer], [seen.of_output])
        )
        with input_hooks([root], [seen.begin]), watched, output_hooks([root], [seen.end]):
            outputs = self.target(inputs)
        # From the output on, so that it is the whole backward pass that it is counted as.
        features = seen.rows(len(inputs)).flatten(1) + 0 * outputs.sum(1, keepdim=True)
        return F.normalize(features, dim=1) if self.unit else features


class _Passes:
    """What a layer took or gave, pass by pass of the network that it is in: the inputs may come in parts, and a pass be begun anew."""

    def __init__(self) -> None:
        self._ended: list[list[Tensor]] = []
        self._now: list[Tensor] = []

    def begin(self, root: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._now = []

    def end(self, root: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        self._ended.append(self._now)
        self._now = []

    def of_input(self, layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._now.append(arguments[0].clone())  # what follows may write into it

    def of_output(self, layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        self._now.append(output.clone())

    def rows(self, count: int) -> Tensor:
        """(count, ..) of the inputs. Where a layer is called again in a pass, as a detector does, the first time counts."""
        passes = [*self._ended, *([each] for each in self._now)]  # the parts of an ensemble are called without it: no pass ends
        for kept in ([each for one in passes for each in one], [one[0] for one in passes if one]):
            if sum(map(len, kept)) == count:
                return torch.cat(kept)
        raise TargetError(
            "the layer of the model's features does not give one row for each input in a pass",
            fix="take a network whose last linear layer, or whose image tower, is called with a batch of samples",
        )


def _image_tower(module: nn.Module) -> nn.Module | None:
    from robustkd.targets.tower_modules import WithImageTower  # late: it imports torch

    return next((part.image for part in module.modules() if isinstance(part, WithImageTower)), None)
