"""The order of a network's weights in memory in which a CPU convolves fastest.

With the weights of its convolutions laid out channels last, a small network takes a tenth to a half less time for the same
passes on a CPU (``benchmarks/layout.py``); wide ones, ResNet-18 and VGG, up to a tenth more. The values are the same, and what
comes out differs by rounding, as it does between one machine and the next. In float64 and bfloat16 nothing is gained, and on other
devices it was not measured, so there the weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from robustkd.lazy import nn, torch
from robustkd.targets.frozen import parts_of, untouched

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def channels_last(module: nn.Module) -> Iterator[None]:
    """Until the end of the block, or until ``restore_layout``, the weights of 2-d convolutions lie in memory channels last.

    For use where nobody writes weights: what is put back is what was there.
    """
    weights = [weight for weight in _weights(module) if _found(weight) is None]
    for weight in weights:
        weight.as_found = weight.data  # type: ignore[attr-defined]
        # `contiguous` would leave a weight of one input channel as it is, and its output with it: both orders fit its strides.
        weight.data = torch.empty_like(weight.data, memory_format=torch.channels_last).copy_(weight.data)
    try:
        yield
    finally:
        _put_back(weights)


def restore_layout(module: nn.Module) -> bool:
    """Give up ``channels_last``: some networks reshape by ``view``, which needs the order that they were written for.

    Returns:
        whether there was something to put back.
    """
    return _put_back(_weights(module))


def to_channels_last(module: nn.Module, images: Tensor) -> bool:
    """Lay ``module`` out for good, unless it cannot answer ``images`` then.

    Returns:
        whether it is; images should come laid out so, too.
    """
    module.to(memory_format=torch.channels_last)
    with untouched(module), torch.no_grad():
        try:
            module(images.contiguous(memory_format=torch.channels_last))
        except RuntimeError:
            module.to(memory_format=torch.contiguous_format)
            return False
    return True


def is_laid_out(module: nn.Module) -> bool:
    """Whether ``channels_last`` is in force."""
    weight = first(module, _convolution)
    return weight is not None and _found(weight) is not None


def contiguous_gradient(inputs: Tensor) -> Tensor:
    """The same values; the gradient that arrives here is laid out as code written for the usual order expects it (``view``)."""
    return inputs.flatten(1).view(inputs.shape)  # on the way back each reshapes; a hook would cost several times as much


def first(module: nn.Module, wanted: Callable[[nn.Module], nn.Parameter | None]) -> nn.Parameter | None:
    """The first parameter that ``wanted`` finds in ``module`` or one of its parts, in the order of ``module.modules()``.

    That goes through a set of what was seen and through names, for each pass of a small network a tenth of its time.
    """
    found = wanted(module)
    for part in module._modules.values():
        if found is not None:
            break
        found = None if part is None else first(part, wanted)
    return found


def _convolution(module: nn.Module) -> nn.Parameter | None:
    return module._parameters.get("weight") if isinstance(module, nn.Conv2d) else None


def _weights(module: nn.Module) -> list[nn.Parameter]:
    """Of the convolutions that gain, each once; of none where torch has compiled code for the order that it saw."""
    parts = parts_of(module)
    if not torch.backends.mkldnn.is_available() or any("_orig_mod" in part._modules for part in parts):
        return []
    convolutions = (weight for part in parts if (weight := _convolution(part)) is not None)
    fits = (weight for weight in convolutions if (weight.device.type, weight.dtype) == ("cpu", torch.float32))
    return list({id(weight): weight for weight in fits}.values())


def _found(weight: nn.Parameter) -> Tensor | None:
    data: Tensor | None = getattr(weight, "as_found", None)
    return data


def _put_back(weights: list[nn.Parameter]) -> bool:
    before = [(weight, data) for weight in weights if (data := _found(weight)) is not None]
    for weight, data in before:
        weight.data = data
        del weight.as_found  # type: ignore[attr-defined]
    return bool(before)
