"""Every tensor in a file of weights, and nothing else of it: no code that a file names is run."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError

from robustkd.contracts import TargetError
from robustkd.lazy import torch
from robustkd.targets.fit import listed

if TYPE_CHECKING:
    from torch import Tensor

_OF_TORCH = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put into names, at any depth."""
_SAVE = "save its state_dict alone, torch.save(model.state_dict(), FILE), or convert it to safetensors"


@dataclass(frozen=True)
class Tensors:
    """The tensors of a file by their dotted places in it.

    Attributes:
        file: where they are from.
        flat: the tensors by name.
        home: by name, the mapping that directly holds the tensor.
    """

    file: Path
    flat: dict[str, Tensor]
    home: dict[str, str]

    @property
    def homes(self) -> list[str]:
        """The mappings that hold tensors, those with most of them first."""
        return [home for home, _ in Counter(self.home[name] for name in self.flat).most_common()]

    def under(self, key: str | None) -> Tensors:
        """Those at one place of the file; all of them for None.

        Raises:
            TargetError: there are none.
        """
        if not key:
            return self
        flat = {name: tensor for name, tensor in self.flat.items() if name.startswith(f"{key.rstrip('.')}.")}
        if not flat:
            places = sorted({name.partition(".")[0] for name in self.flat})
            raise TargetError(f"{self.file} has no weights under '{key}'", fix=f"its names begin with {listed(places)}")
        return replace(self, flat=flat)


def read(file: Path) -> Tensors:
    """Every tensor of a safetensors file or one of torch.save, wherever in its mappings and lists it is.

    Raises:
        TargetError: the file is missing or damaged, or holds no tensor.
    """
    if not file.is_file():
        raise TargetError(f"there is no weights file {file}")
    if file.suffix != ".safetensors" and (whole := _whole(file)):
        raise TargetError(f"{file} is a whole model ({whole}), not weights alone", fix=f"name it instead of code: {file.name}")
    unknown: list[str] = []
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file  # late: it imports torch

        try:
            loaded: object = load_file(file)
        except SafetensorError as error:
            raise TargetError(f"{file} is damaged: {error}", fix="copy it again, or train again") from error
    else:
        loaded, unknown = _unpickled(file)
    found = {name: (home, tensor) for name, home, tensor in _walk(loaded, "", set())}
    if not found and (unknown or loaded != {}):  # a network may have no tensors
        what = f"it holds pickled objects ({listed(unknown)}), which are code" if unknown else "it holds no state_dict"
        raise TargetError(f"{file} cannot be read safely as weights: {what}", fix=_SAVE)
    return Tensors(
        file, {name: tensor for name, (_, tensor) in found.items()}, {name: home for name, (home, _) in found.items()}
    )


def _whole(file: Path) -> str | None:
    from robustkd.targets.model_files import format_of  # late: it imports torch

    return format_of(file)


def _walk(value: object, home: str, outside: set[int]) -> Iterator[tuple[str, str, Tensor]]:
    if id(value) in outside:  # it holds itself
        return
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        name = f"{home}{key}"
        if isinstance(item, torch.Tensor):
            yield plain(name), plain(home), item
        else:
            yield from _walk(item, f"{name}.", outside | {id(value)})


class _Inert:
    """Stands for a class or a function that a pickle names. Whatever is done with it, the result is an empty mapping."""

    def __new__(cls, *_: object, **__: object) -> OrderedDict[str, object]:  # type: ignore[misc]
        return OrderedDict()


def _unpickled(file: Path) -> tuple[object, list[str]]:
    """What torch reads of a file without running code of it, and the names in it of what torch does not know."""
    try:
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # no archive, as torch before 1.6 wrote them, or none that can be read: torch.load says so
        unknown = []
    known = _numpys_own()
    unknown = sorted(set(unknown) - {name for _, name in known})
    try:
        # torch asks for types here, and takes what a name is to stand for.
        with torch.serialization.safe_globals([*known, *((_Inert, name) for name in unknown)]):
            return torch.load(file, map_location="cpu", weights_only=True), unknown
    except Exception as error:
        said = re.search(r"WeightsUnpickler error:\s*(.+)", str(error)) or re.search(r"(.+)", str(error))
        what = f"{type(error).__name__}: {said[1][:200]}" if said else type(error).__name__
        raise TargetError(f"{file} cannot be read safely ({what})", fix=_SAVE) from error


def _numpys_own() -> list[tuple[Any, str]]:
    """What a NumPy number or array is pickled as, under the names of NumPy 1 and 2. Objects are not among its types."""
    core = getattr(np, "_core" if hasattr(np, "_core") else "core").multiarray  # of NumPy 2, or of NumPy 1
    own = [(np.dtype, "numpy.dtype"), (np.ndarray, "numpy.ndarray")]
    for home, name in product(("core", "_core"), ("scalar", "_reconstruct")):
        own.append((getattr(core, name), f"numpy.{home}.multiarray.{name}"))
    for kind in {type(np.dtype(code)) for code in "?bhilqBHILQefdgFDSU"}:
        own.append((kind, f"{kind.__module__}.{kind.__qualname__}"))
    return own


def plain(name: str) -> str:
    """The name without what torch put into it."""
    return _OF_TORCH.sub("", name)
