"""The precision that evaluations compute in: float32 as such, whatever a process may use for the sake of speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from robustkd.lazy import torch
from robustkd.targets.frozen import recording_gradients

Setting = TypeVar("Setting")
_COARSE = ("tf32", "bf16")


@contextmanager
def full_precision() -> Iterator[None]:
    """Until the end of the block (or of the function that it decorates) float32 is computed as float32.

    On CUDA, torch convolves in TensorFloat-32, which has 10 bits of the 23, and ``torch.set_float32_matmul_precision`` does the like to
    matrix products, on CPUs too. An adversarial example that lies close to the boundary is one in the precision alone that it was found
    in, and most of a minimum-norm attack's do. So what is reported holds on another device, too.

    The settings are the process's, and are put back.
    """
    backends, parts = torch.backends, _parts()
    products, convolutions = _read(torch.get_float32_matmul_precision), _read(lambda: backends.cudnn.allow_tf32)
    found = [part.fp32_precision for part in parts]
    try:
        # By the older of torch's two ways, where it does: a model that asks in that way is told "mixed" of the other, by an error.
        if products is not None:
            torch.set_float32_matmul_precision("highest")
        if convolutions is not None:
            backends.cudnn.allow_tf32 = False
        _write(parts, ["ieee" if part.fp32_precision in _COARSE else part.fp32_precision for part in parts])
        yield
    finally:
        if products is not None:
            torch.set_float32_matmul_precision(products)
        if convolutions is not None:
            backends.cudnn.allow_tf32 = convolutions
        _write(parts, found)


@contextmanager
def evaluating() -> Iterator[None]:
    """What evaluations run in: gradients can be taken, and in ``full_precision``."""
    with recording_gradients(), full_precision():
        yield


def _parts() -> list[Any]:
    """What torch keeps a precision of; nothing before torch 2.9, where the older settings are all there are."""
    backends = torch.backends
    if not hasattr(backends.cudnn, "conv"):
        return []
    by_cpu: Any = backends.mkldnn
    return [backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul, by_cpu.matmul, by_cpu.conv, by_cpu.rnn]


def _write(parts: list[Any], precisions: list[str]) -> None:
    for part, precision in zip(parts, precisions, strict=True):
        if part.fp32_precision != precision:
            part.fp32_precision = precision


def _read(setting: Callable[[], Setting]) -> Setting | None:
    """The setting; None where torch refuses to say it, because somebody used its newer way."""
    try:
        return setting()
    except RuntimeError:
        return None
