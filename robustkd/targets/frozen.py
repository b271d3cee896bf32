"""Use a network without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from robustkd.contracts import TargetError
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import nn


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


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without weight gradients; each submodule's mode and each parameter's flag are restored.

    Raises:
        TargetError: weights or buffers are inference tensors, through which no gradient can be taken.
    """
    if any(tensor.is_inference() for tensor in (*module.parameters(), *module.buffers())):
        raise TargetError(
            "the model's weights or buffers were made inside torch.inference_mode, so no gradient goes through them",
            fix="build and load the model outside of inference_mode, or pass a copy.deepcopy of it that is made outside",
        )
    modes = {child: child.training for child in module.modules()}
    flags = {parameter: parameter.requires_grad for parameter in module.parameters()}
    module.eval()
    for parameter in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """``frozen``, and every buffer restored."""
    buffers = {buffer: buffer.detach().clone() for buffer in module.buffers()}
    with frozen(module):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers.items():
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)
