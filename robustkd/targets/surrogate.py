"""Stages without a useful gradient, and what takes their place on the way back.

A stage of a network (any submodule) declares its backward surrogate by a method ``surrogate(inputs) -> Tensor``, which is
called like ``forward``, returns the same shape and can be differentiated:

    class Binarise(nn.Module):
        def forward(self, x): return (x > 0.5).to(x.dtype)
        def surrogate(self, x): return x

The declaration changes nothing by itself; it is put to use by an attack (``bpda``), for as long as that runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from robustkd.contracts import Target, TargetError
from robustkd.lazy import torch
from robustkd.targets.activations import OutputHook, output_hooks, submodules

if TYPE_CHECKING:
    from torch import Tensor, nn

Surrogate: TypeAlias = "Callable[..., Tensor]"
"""Called with a stage's inputs; its output has the shape of the stage's and a gradient."""


def declared_surrogates(target: Target) -> dict[str, Surrogate]:
    """The surrogates that stages of ``target`` declare, by the stage's name in ``target.module`` ("" is the module itself)."""
    found = {name: getattr(stage, "surrogate", None) for name, stage in target.module.named_modules()}
    return {name: surrogate for name, surrogate in found.items() if callable(surrogate)}


@contextmanager
def backward_surrogates(module: nn.Module, surrogates: Mapping[str, Surrogate]) -> Iterator[None]:
    """Until the end of the block the named stages compute what they always do, and have the gradient of their surrogates.

    Raises:
        TargetError: there is no stage of that name.
    """
    hooks = [_swapped(name, surrogate) for name, surrogate in surrogates.items()]
    with output_hooks(submodules(module, list(surrogates)), hooks):
        yield


def _swapped(name: str, surrogate: Surrogate) -> OutputHook:
    def hook(stage: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        smooth = surrogate(*inputs)
        if not isinstance(smooth, torch.Tensor) or smooth.shape != output.shape:
            given = tuple(smooth.shape) if isinstance(smooth, torch.Tensor) else type(smooth).__name__
            raise TargetError(
                f"the surrogate of stage {name!r} returned {given}, the stage itself {tuple(output.shape)}",
                fix="a surrogate returns what the stage returns, only smoother",
            )
        # The bracket is exactly zero, so that rounding moves nothing over a later threshold.
        return output.detach() + (smooth - smooth.detach())

    return hook
