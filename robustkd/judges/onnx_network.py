"""A network in an ONNX file, as judges of images ask it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from robustkd.contracts import TargetError
from robustkd.contracts.extras import installation
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Layout = Literal["nchw", "nhwc"]
_BATCH_SIZE = 16


class OnnxNetwork:
    """A network whose only input are images.

    Args:
        file: the ONNX file.
        layout: where the channels of its input are.
        judge: what an error calls who asks.
    """

    def __init__(self, file: Path, layout: Layout, judge: str) -> None:
        self._file, self._layout, self._judge = file, layout, judge

    @property
    def shape(self) -> tuple[int | None, int | None, int | None]:
        """(C, H, W) of its input; None where the file leaves a side open."""
        sides = self._sides[1:]
        channels, height, width = sides if self._layout == "nchw" else (sides[2], sides[0], sides[1])
        return channels, height, width

    def __call__(self, images: Tensor) -> np.ndarray:
        """(N, C, H, W) float32 -> its first output for all of them, (N, ..).

        Raises:
            TargetError: it cannot take such images.
        """
        given = images if self._layout == "nchw" else images.permute(0, 2, 3, 1)
        name = self._session.get_inputs()[0].name
        try:
            parts = [self._session.run(None, {name: part.numpy()})[0] for part in given.split(self._sides[0] or _BATCH_SIZE)]
            found: np.ndarray = np.concatenate(parts)
        except Exception as error:  # onnxruntime has no class of its own for what a file may raise
            raise TargetError(f"{self._file} cannot judge images of {tuple(images.shape[1:])}: {error}") from error
        return found

    @property
    def _sides(self) -> Sequence[int | None]:
        """(N, ..) of the input."""
        shape = self._session.get_inputs()[0].shape
        if len(shape) != 4:
            raise TargetError(
                f"{self._file} takes inputs of shape {shape}", fix="give a network that takes images, (N, C, H, W)"
            )
        return [side if isinstance(side, int) else None for side in shape]

    @cached_property
    def _session(self) -> Any:
        try:
            import onnxruntime
        except ImportError as error:
            raise TargetError(f"the judge {self._judge} needs onnxruntime", fix=installation("onnx")) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            return onnxruntime.InferenceSession(self._file, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise TargetError(f"{self._file} cannot be loaded: {error}", fix="check that it is an ONNX file") from error
