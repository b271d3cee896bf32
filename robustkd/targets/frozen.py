"""Use a network without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from robustkd.contracts import TargetError
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


@contextmanager
def recording_gradients() -> Iterator[None]:
    """Until the end of the block (or of the function that it decorates) gradients can be taken, even inside the caller's
    ``torch.no_grad`` or ``torch.inference_mode``.
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def without_gradients() -> Iterator[None]:
    """``torch.no_grad`` for the block, or for the function that it decorates; it does not import torch before it is entered."""
    with torch.no_grad():
        yield


def parts_of(module: nn.Module) -> list[nn.Module]:
    """What ``module.modules()`` gives, but without the names that it makes up on its way, which take as long as a small layer."""
    found: dict[nn.Module, None] = {}

    def add(part: nn.Module) -> None:
        if part not in found:
            found[part] = None
            for child in part._modules.values():
                if child is not None:
                    add(child)

    add(module)
    return list(found)


def require_weights(module: nn.Module) -> None:
    """Refuse a network with layers that take their shapes from the first batch and have seen none (``nn.LazyLinear``).

    Raises:
        TargetError: it has such layers.
    """
    _require_shapes(_tensors(parts_of(module)))


def _tensors(parts: list[nn.Module]) -> list[Tensor]:
    """The parameters and buffers of these alone."""
    groups = (group for part in parts for group in (part._parameters, part._buffers))
    return [tensor for group in groups for tensor in group.values() if tensor is not None]


def _require_shapes(tensors: list[Tensor]) -> None:
    if any(torch.nn.parameter.is_lazy(tensor) for tensor in tensors):
        raise TargetError(
            "the model has layers without weights yet, such as LazyLinear",
            fix="call the model once on a batch of images before",
        )


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without weight gradients; each submodule's mode and each parameter's flag are restored.

    The mode is set by the network's own ``train``, which may do more than set flags: a LoRA layer merges its update into the weight.

    Raises:
        TargetError: weights or buffers are inference tensors, through which no gradient can be taken, or have no shape yet.
    """
    parts = parts_of(module)
    tensors = _tensors(parts)
    _require_shapes(tensors)
    if any(tensor.is_inference() for tensor in tensors):
        raise TargetError(
            "the model's weights or buffers were made inside torch.inference_mode, so no gradient goes through them",
            fix="build and load the model outside of inference_mode, or pass a copy.deepcopy of it that is made outside",
        )
    modes = {part: _in_training(part) for part in parts}
    if any(modes.values()):
        with suppress(NotImplementedError):  # what torch.export returns has no modes
            module.eval()
    parameters = (parameter for part in parts for parameter in part._parameters.values() if parameter is not None)
    flags = {parameter: parameter.requires_grad for parameter in parameters}
    for parameter in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        for child, mode in modes.items():  # a parent before its parts, which it sets as well
            if _in_training(child) != mode:
                child.train(mode)


def _in_training(module: nn.Module) -> bool:
    return bool(getattr(module, "training", False))  # torch.jit.freeze takes the attribute away


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """``frozen``, and every buffer restored that can be compared with what it was."""
    buffers = {buffer: copied for buffer in module.buffers() if (copied := _copied(buffer)) is not None}
    with frozen(module):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers.items():
                    if buffer.shape == value.shape and not torch.equal(buffer, value):
                        buffer.copy_(value)


def _copied(tensor: Tensor) -> Tensor | None:
    """A copy; None of a tensor without dense numbers (sparse, quantised, on the meta device, not yet initialised)."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or torch.nn.parameter.is_lazy(tensor):
        return None
    return tensor.detach().clone()
