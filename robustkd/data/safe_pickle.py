"""Pickles of plain values and NumPy arrays, read without running what a pickle could run."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from robustkd.contracts import DataError


def read_pickle(file: Path) -> Any:
    """The content of a pickle that is made of built-in values and NumPy arrays, such as the Python version of CIFAR.

    Raises:
        DataError: the file is damaged, or names anything else than what rebuilds an array.
    """
    try:
        with file.open("rb") as stream:
            # The files were written by Python 2, whose strings are the bytes of an array too: latin1 keeps every byte.
            return _ArraysOnly(stream, encoding="latin1").load()
    except Exception as error:  # a damaged or hostile pickle can raise anything
        raise DataError(
            f"{file} cannot be read safely: {type(error).__name__}: {error}", fix="get it again from its authors"
        ) from error


def _dtype(name: str, *flags: Any) -> np.dtype[Any]:
    # A copy, for the pickle sets its state; the flags are Python 2's way of asking for one, which NumPy now warns about.
    return np.dtype(str(name), copy=True)


def _array(*described: Any) -> np.ndarray:
    # A placeholder: shape, type and content follow as its state.
    return np.empty(0, np.uint8)


def _encoded(text: str, encoding: str) -> bytes:
    # How Python 3 writes bytes in the protocols of Python 2. Other codecs may do anything.
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}")
    return text.encode("latin1")


def _from_buffer(content: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray:
    return np.frombuffer(content, dtype).reshape(shape, order=order)


_ALLOWED: dict[tuple[str, str], Callable[..., Any] | None] = {
    ("numpy", "ndarray"): None,  # only ever an argument of _reconstruct, which needs none
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "_reconstruct"): _array,
    ("numpy._core.multiarray", "_reconstruct"): _array,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encoded,
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _ALLOWED[module, name]
