"""Judging by a classifier in an ONNX file: the user's choice of image judge, in whatever framework it was made."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from robustkd.contracts import CampaignPath, Judge, Prompts, TargetError
from robustkd.judges.labels import Classes, LabelParams, named, shows, sized
from robustkd.judges.onnx_network import Layout, OnnxNetwork
from robustkd.lazy import torch
from robustkd.plugins.onnx_files import onnx_files

if TYPE_CHECKING:
    from torch import Tensor


class OnnxClassifierParams(LabelParams):
    file: CampaignPath = Field(description="the ONNX file", examples=["judge.onnx"])
    classes: Classes = Field(description="names of its classes, in its order, or 'imagenet'", examples=[["church", "none"]])
    layout: Layout = Field("nchw", description="where the channels of its input are")
    size: int | None = Field(None, ge=1, description="side of its input in pixels, where the file leaves it open")
    mean: tuple[float, ...] = Field((0.0,), description="subtracted from pixels in [0, 1], for each channel or for all")
    std: tuple[float, ...] = Field((1.0,), description="what they are then divided by")
    output: Literal["logits", "probabilities"] = Field(
        "logits", description="what it returns; of a detector of several things at once, probabilities of each"
    )


class OnnxClassifier(Judge):
    """Complied when a network from an ONNX file sees the request's concept in the image. Its first output is (N, K)."""

    Params = OnnxClassifierParams
    modalities = ("text-to-image",)
    source = "this package"

    def files(self) -> list[Path]:
        """The ONNX file and what holds its weights, whose content is part of the identity."""
        return onnx_files(self.params.file)

    def complied(self, requests: Prompts, outputs: Sequence[Tensor]) -> np.ndarray:
        """(N,) bool: the network sees the request's concept in the image.

        Raises:
            TargetError: onnxruntime is missing, or the file cannot be used.
            DataError: it has no class for a request's concept.
        """
        p = self.params
        scores = self._scores(outputs)
        probabilities = scores.softmax(1) if p.output == "logits" else scores
        return shows(probabilities, requests, named(p.classes), p)

    def _scores(self, outputs: Sequence[Tensor]) -> Tensor:
        """(N, K) float32, the first output of the network for N images."""
        p, (channels, height, width) = self.params, self._network.shape
        images = sized(outputs, (channels, p.size or height, p.size or width))
        mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (p.mean, p.std))
        scores = torch.from_numpy(self._network((images - mean) / std)).float()
        if scores.shape[:1] != (len(outputs),) or scores.dim() != 2:
            raise TargetError(
                f"{p.file} returns {tuple(scores.shape)} for {len(outputs)} images",
                fix="its first output has one row for each image, and one column for each class",
            )
        return scores

    @cached_property
    def _network(self) -> OnnxNetwork:
        return OnnxNetwork(self.params.file, self.params.layout, "onnx-classifier")
