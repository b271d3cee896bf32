"""What the image architectures share: normalisation parameters, the check of the input's shape, the pooling."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from robustkd.contracts import Model, Params, UsageError
from robustkd.lazy import nn
from robustkd.normalisation.layer import Normalise

if TYPE_CHECKING:
    from torch import Tensor


class ImageParams(Params):
    """Parameters of every image architecture."""

    mean: tuple[float, ...] | None = Field(None, description="per-channel mean taken off the pixels inside the network")
    std: tuple[float, ...] | None = Field(None, description="per-channel deviation that the pixels are divided by afterwards")

    @model_validator(mode="after")
    def _normalisation_is_whole(self) -> Self:
        mean, std = self.mean, self.std
        if (mean is None) != (std is None):
            raise ValueError("give both mean and std, or neither (the network then sees pixels in [0, 1])")
        if mean is not None and std is not None:
            if len(mean) != len(std):
                raise ValueError(f"mean has {len(mean)} values and std has {len(std)}; give one of each for every channel")
            if min(std, default=1.0) <= 0:
                raise ValueError("every value of std must be above 0")
        return self


class ImageNetwork(nn.Module):
    """A network whose first step is its normalisation; a subclass implements ``_logits``.

    No layer works in place: a forward hook (``Target.features``) sees what the layer returned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.normalise: nn.Module = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, K) logits."""
        return self._logits(self.normalise(images))

    def _logits(self, x: Tensor) -> Tensor:
        """(B, C, H, W) normalised -> (B, K) logits."""
        raise NotImplementedError


class GlobalMeanPool(nn.Module):
    """(B, C, H, W) -> (B, C), the mean over positions: any image size, and a deterministic backward on every device."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C)."""
        return x.mean(dim=(2, 3))


class ImageModel(Model):
    """An image architecture: a subclass implements ``_network``, this class checks the shape and adds normalisation.

    Attributes:
        smallest: the smallest height and width that survive the architecture's strides.
    """

    Params: ClassVar[type[Params]] = ImageParams
    smallest: ClassVar[int] = 4

    def build(self, input_shape: Sequence[int], num_classes: int) -> nn.Module:
        """A fresh network from (B, *input_shape) in [0, 1] to (B, num_classes) logits.

        Raises:
            UsageError: the images are too small, or the normalisation is for another number of channels.
        """
        who, params, shape = type(self).__name__, self.params, tuple(input_shape)
        if len(shape) != 3 or min(shape) < 1 or min(shape[1:]) < self.smallest:
            raise UsageError(
                f"{who} cannot take inputs of shape {shape}",
                fix=f"give images as (channels, height, width), at least {self.smallest} pixels high and wide",
            )
        if num_classes < 2:
            raise UsageError(f"{who} was asked for {num_classes} classes", fix="a classifier needs at least 2")
        network = self._network(shape[0], shape[1], shape[2], num_classes)
        if params.mean is not None:
            if len(params.mean) != shape[0]:
                raise UsageError(
                    f"{who}: mean and std have {len(params.mean)} values, the images have {shape[0]} channels",
                    fix="give one mean and one std for every channel",
                )
            network.normalise = Normalise(params.mean, params.std)
        return network

    @abstractmethod
    def _network(self, channels: int, height: int, width: int, num_classes: int) -> ImageNetwork:
        """Build the network without its normalisation."""


def conv3x3(inputs: int, outputs: int, stride: int = 1, **options: Any) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size (``stride`` 1) or halves it, rounding up (``stride`` 2)."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, **options)
