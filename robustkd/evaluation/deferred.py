"""Images that are brought to the device where they are used: a tensor that has its shape, and its values when they are asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._pytree import tree_map

from robustkd.contracts import Arrays
from robustkd.contracts.data import KEPT_BYTES

if TYPE_CHECKING:
    from torch import Tensor

_SHAPE_ALONE = ("new_full", "new_empty", "new_zeros", "new_ones")


class DeferredImages(torch.Tensor):
    """The images of ``data``, (N, C, H, W) in [0, 1], for parts of a batch that are larger than the memory.

    Rows of it (by indices, a mask or a slice) are an ordinary tensor, unless they are larger than ``KEPT_BYTES`` themselves. Anything
    else that is done with it computes with all images at once.
    """

    data_set: Arrays

    @staticmethod
    def __new__(cls, data: Arrays, device: torch.device, dtype: torch.dtype = torch.float32) -> DeferredImages:
        """Keep the data set; nothing of it is decoded yet."""
        size = (len(data), *data.sample_shape)
        made: DeferredImages = torch.Tensor._make_wrapper_subclass(cls, size, dtype=dtype, device=device)
        made.data_set = data
        return made

    def decoded(self) -> Tensor:
        """All images, as an ordinary tensor."""
        return torch.from_numpy(self.data_set.unit()).to(self.device, self.dtype)

    def __getitem__(self, rows: Any) -> Tensor:
        """Decode the images of some rows."""
        if isinstance(rows, torch.Tensor) and rows.ndim == 1 and rows.dtype in (torch.int64, torch.bool):
            chosen = rows.cpu().numpy()
        elif isinstance(rows, slice):
            chosen = np.arange(len(self))[rows]
        elif isinstance(rows, int):
            return self[rows : rows + 1 or None][0]
        else:
            return self.decoded()[rows]
        part = DeferredImages(self.data_set.select(chosen), self.device, self.dtype)
        return part if part.numel() * part.element_size() > KEPT_BYTES else part.decoded()

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """The same images on another device or in another type."""
        like = torch.empty(0, dtype=self.dtype, device=self.device).to(*args, **kwargs)
        return DeferredImages(self.data_set, like.device, like.dtype)

    def __repr__(self, *, tensor_contents: Any = None) -> Any:  # type: ignore[override]  # torch leaves it untyped
        return f"DeferredImages({tuple(self.shape)}, {self.dtype}, {self.device})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares its default here, which is no class method
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[Any, Any] | None = None
    ) -> Any:
        shape_alone = func.overloadpacket.__name__ in _SHAPE_ALONE

        def ordinary(value: Any) -> Any:
            if not isinstance(value, cls):
                return value
            return torch.empty(0, dtype=value.dtype, device=value.device) if shape_alone else value.decoded()

        return func(*tree_map(ordinary, args), **tree_map(ordinary, kwargs or {}))
