"""The user's own arrays, in a NumPy archive."""

from __future__ import annotations

import zipfile
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from robustkd.contracts import Arrays, CampaignPath, DataError, Dataset, Params, RawData
from robustkd.data.arrays import as_arrays
from robustkd.data.images import resized
from robustkd.data.multi_label import numbered

_NAMES = ("x_train", "y_train", "x_test", "y_test", "images", "labels", "classes")
_CHANNELS = (1, 3)


class NPZParams(Params):
    file: CampaignPath = Field(
        description="archive with images and labels, or with x_train, y_train, x_test and y_test", examples=["data.npz"]
    )
    classes: tuple[str, ...] | None = Field(
        None, description="class names; the archive's 'classes', or the numbers, by default"
    )
    layout: Literal["auto", "nchw", "nhwc", "any"] = Field(
        "auto",
        description="where the channels are; auto looks for the 1 or 3. any: inputs that are no images, as they are, such as (N, T, F)",
    )
    resize: int | None = Field(None, ge=1, description="bring every image to this many pixels each way (bilinear)")


class NPZ(Dataset):
    """``images`` and ``labels`` (a test part only), or ``x_test``, ``y_test`` and, for a training part, ``x_train``, ``y_train``.

    Images are uint8 or floats in [0, 1], as (N, C, H, W), (N, H, W, C) or (N, H, W); labels are integers, (N,) or (N, 1), or
    (N, L), of 0 and 1, where several may hold together. Inputs of any other shape are taken as they are, those of three or four axes
    with ``layout: any``.
    """

    Params: ClassVar[type[Params]] = NPZParams

    def load(self) -> RawData:
        """The archive's arrays as (N, C, H, W).

        Raises:
            DataError: the file is missing, damaged or needs pickle, lacks an array, or its layout is ambiguous.
        """
        arrays = self._arrays()
        train = self._part(arrays, "x_train", "y_train") if "x_train" in arrays else None
        split = train is not None or "x_test" in arrays
        test = self._part(arrays, "x_test", "y_test") if split else self._part(arrays, "images", "labels")
        return RawData(train, test, self._classes(arrays, [part.labels for part in (train, test) if part is not None]))

    def _arrays(self) -> dict[str, np.ndarray]:
        try:
            with np.load(self.params.file, allow_pickle=False) as archive:
                return {name: archive[name] for name in _NAMES if name in archive}
        except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise self._wrong(str(error), "write it with np.savez, arrays of numbers only") from error

    def _part(self, arrays: dict[str, np.ndarray], x: str, y: str) -> Arrays:
        for name in (x, y):
            if name not in arrays:
                raise self._wrong(f"it has no '{name}'", "save images and labels, or x_train, y_train, x_test and y_test")
        labels = arrays[y]
        images = as_arrays(self._channels_first(arrays[x]), labels[:, 0] if labels.shape[1:] == (1,) else labels, "npz")
        return resized(images, self.params.resize)

    def _channels_first(self, images: np.ndarray) -> np.ndarray:
        layout = self.params.layout
        if layout == "any" or images.ndim not in (3, 4):
            return images
        if images.ndim == 3:
            return images[:, None]
        if layout == "auto":
            first, last = images.shape[1] in _CHANNELS, images.shape[3] in _CHANNELS
            if first == last:
                raise self._wrong(f"channels are not to be told from {images.shape}", "set 'layout' to nchw or nhwc")
            layout = "nchw" if first else "nhwc"
        return images if layout == "nchw" else images.transpose(0, 3, 1, 2)

    def _classes(self, arrays: dict[str, np.ndarray], labels: list[np.ndarray]) -> tuple[str, ...]:
        if self.params.classes is not None:
            return tuple(self.params.classes)
        if "classes" in arrays:
            return tuple(str(name) for name in arrays["classes"].tolist())
        return numbered(labels)

    def _wrong(self, reason: str, fix: str) -> DataError:
        return DataError(f"data 'npz': {self.params.file} cannot be used: {reason}", fix=fix)
