"""The features of any network at its layers: as a target, what an attack climbs instead of logits; beside the logits, for a loss.

A layer is the name of a submodule (its output, by a forward hook) or a number: the input of the n-th activation function that the
forward pass calls, whether it is a module or a plain function, so before the ReLU; after the last of them, the logits. A pass ends
where the features are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from robustkd.contracts import WrappedTarget
from robustkd.lazy import torch
from robustkd.targets import ImageTarget
from robustkd.targets.activations import output_hooks, submodules

if TYPE_CHECKING:
    from torch import Tensor

Layer = str | int


def record_activations(tell: Callable[[Tensor], None]) -> AbstractContextManager[object]:
    """Tells the input of each activation function that is called inside the block."""
    from robustkd.defenses.training.activations import Activations  # late: it imports torch

    return Activations(tell)


class _LayerReached(BaseException):
    """Ends a forward pass early. It is no ``Exception``: what a network raises is told as the network's error."""

    def __init__(self, features: Tensor) -> None:
        self.features = features


class AtLayer(WrappedTarget):
    """A classifier that answers with the features of one layer.

    Args:
        target: the classifier.
        layer: a submodule's name, or a number from 0 to ``layer_count(target) - 1``.

    Raises:
        TargetError: there is no submodule of that name.
    """

    def __init__(self, target: ImageTarget, layer: Layer) -> None:
        super().__init__(target)
        self._submodules = submodules(target.module, [layer] if isinstance(layer, str) else [])
        self.layer = layer

    def __call__(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D), flattened."""
        try:
            with self._watched():
                logits = self.target(inputs)
        except _LayerReached as reached:
            return reached.features.flatten(1).to(inputs.dtype)
        return logits

    @contextmanager
    def _watched(self) -> Iterator[None]:
        if isinstance(self.layer, int):
            with record_activations(self._counting(self.layer)):
                yield
            return

        def stop(module: Any, arguments: Any, output: Tensor) -> None:
            raise _LayerReached(output)

        with output_hooks(self._submodules, [stop]):
            yield

    def _counting(self, number: int) -> Callable[[Tensor], None]:
        left = number

        def tell(features: Tensor) -> None:
            nonlocal left
            if left == 0:
                raise _LayerReached(features)
            left -= 1

        return tell


def layer_count(target: ImageTarget) -> int:
    """How many numbered layers there are: one for each activation function of a forward pass, and the logits."""
    inputs: list[Tensor] = []
    with torch.no_grad(), record_activations(inputs.append):
        target(torch.full((1, *target.input_shape), 0.5, device=target.device))
    return len(inputs) + 1


def with_activations(target: ImageTarget, inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """(B, K) logits, and the input of each activation function of the pass, in order, as it is."""
    seen: list[Tensor] = []
    with record_activations(seen.append):
        logits = target(inputs)
    return logits, seen
