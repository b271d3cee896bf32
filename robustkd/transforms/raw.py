"""RAW: an image goes through the one value a pixel that a camera's sensor records, and is developed again.

    m(x): of each pixel one of red, green and blue, by Bayer's pattern RGGB
    S(r): bilinear demosaicing, the missing values from the nearest recorded ones
    x' = alpha G(m(x)) + (1 - alpha) S(m(x)),     G(r) = S(r) + network(S(r), r)

A third of the values is kept, and a perturbation of the others is gone. What is kept was perturbed as well, and everything here has an
exact gradient, so an attack goes through it. ``demosaic`` is the round trip without a network, the control for ``raw``.

A grey image is taken for three equal channels, and what comes out is their mean.

From the authors: the sum of a learned and a conventional development of the mosaicked image, put before a classifier that is left as it
is. From us: the mosaic itself in the place of a network that maps RGB to the RAW images of a camera, which takes such images to learn; a
small residual network in the place of PyNET. The authors' evaluation attacks the classifier alone.

Source: Zhang, Dong, Heide: All you need is RAW: defending against adversarial attacks with camera image pipelines (ECCV 2022),
arXiv:2112.09219, section 3; the authors' code for the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import Params, Transform, UsageError
from robustkd.lazy import F, nn, torch

if TYPE_CHECKING:
    from torch import Tensor


class RawParams(Params):
    alpha: float = Field(0.7, gt=0, le=1, description="weight of the learned development; the conventional one has the rest")
    width: int = Field(16, ge=1, description="channels of the network's hidden layers")


class Bayer(nn.Module):
    """m and S of the formula, for images of one size.

    Args:
        height, width: of the images.
    """

    mask: Tensor
    kernel: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        rows, columns = torch.arange(height).view(-1, 1) % 2, torch.arange(width).view(1, -1) % 2
        red, blue = (rows == 0) & (columns == 0), (rows == 1) & (columns == 1)
        self.register_buffer("mask", torch.stack([red, ~(red | blue), blue]).float(), persistent=False)
        side = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("kernel", (side.view(-1, 1) * side).expand(3, 1, 3, 3), persistent=False)

    def mosaic(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W), 0 wherever the sensor does not look."""
        return images * self.mask.to(images)

    def demosaic(self, recorded: Tensor) -> Tensor:
        """(B, 3, H, W) of ``mosaic`` -> (B, 3, H, W): recorded values as they are, the rest the neighbours' weighted mean."""
        mask, kernel = self.mask.to(recorded), self.kernel.to(recorded)
        near = F.conv2d(recorded, kernel, padding=1, groups=3) / F.conv2d(mask.unsqueeze(0), kernel, padding=1, groups=3)
        return torch.where(mask.bool(), recorded, near)


class RoundTrip(nn.Module):
    """S(m(x)).

    Args:
        shape: (C, H, W), of one channel or three.

    Raises:
        UsageError: there are other channels, or the image is no larger than the pattern.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        channels, height, width = shape
        if channels not in (1, 3) or min(height, width) < 2:
            raise UsageError(f"a camera records grey or RGB images of two pixels a side at least, these are {tuple(shape)}")
        self.channels = channels
        self.bayer = Bayer(height, width)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> the same."""
        recorded = self.bayer.mosaic(images.expand(-1, 3, -1, -1))
        return self.back(self.developed(self.bayer.demosaic(recorded), recorded))

    def developed(self, conventional: Tensor, recorded: Tensor) -> Tensor:
        """(B, 3, H, W), of the conventional development and of what was recorded."""
        return conventional

    def back(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H, W)."""
        return images if self.channels == 3 else images.mean(1, keepdim=True)


class Developed(RoundTrip):
    """The whole formula, with a network that must be trained."""

    def __init__(self, shape: Sequence[int], alpha: float, width: int) -> None:
        super().__init__(shape)
        self.alpha = alpha
        self.network = nn.Sequential(
            nn.Conv2d(6, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 3, 3, padding=1),
        )

    @override
    def developed(self, conventional: Tensor, recorded: Tensor) -> Tensor:
        learned = self.learned(conventional, recorded)
        return (self.alpha * learned + (1 - self.alpha) * conventional).clamp(0, 1)

    def learned(self, conventional: Tensor, recorded: Tensor) -> Tensor:
        """(B, 3, H, W) G."""
        correction: Tensor = self.network(torch.cat([conventional, recorded], 1))
        return conventional + correction


class Demosaic(Transform):
    """The round trip through a sensor's mosaic, developed without a network."""

    source = "Zhang et al. 2022, arXiv:2112.09219: the conventional pipeline alone"

    @override
    def build(self, input_shape: Sequence[int]) -> nn.Module:
        return RoundTrip(input_shape)


class Raw(Transform):
    """The round trip through a sensor's mosaic, developed by a network too; it must be trained, which the defense of the same name does."""

    Params: ClassVar[type[Params]] = RawParams
    learns = True
    source = "Zhang et al. 2022, arXiv:2112.09219"

    @override
    def build(self, input_shape: Sequence[int]) -> nn.Module:
        return Developed(input_shape, self.params.alpha, self.params.width)
