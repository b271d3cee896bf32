"""The points that an attacker may choose from, as linear functions see them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustkd.certification.operation import Interval


@dataclass(frozen=True)
class Ball:
    """The images within a radius of clean ones, in the range of valid pixels.

    Attributes:
        box: (B, *shape) the least and the greatest value of each pixel.
        centre: (B, *shape) the clean images.
        radius: (B,) in l2; None where the box says all there is to say, in linf.
    """

    box: Interval
    centre: Tensor
    radius: Tensor | None = None

    @classmethod
    def linf(cls, images: Tensor, eps: Tensor, low: Tensor | float, high: Tensor | float) -> Ball:
        """Images (B, *shape) and their (B,) radii in linf; ``low`` and ``high`` is the range of pixels."""
        return cls(_box(images, eps, low, high), images)

    @classmethod
    def l2(cls, images: Tensor, eps: Tensor, low: Tensor | float, high: Tensor | float) -> Ball:
        """The same in l2."""
        return cls(_box(images, eps, low, high), images, eps)

    def least(self, rows: Tensor) -> Tensor:
        """(S, B, *shape) coefficients -> (S, B), linear functions' least values over the ball; in l2 a bound on them from below,
        the better one of those over the box and over the ball without the range of pixels.
        """
        over_box = self.box.least(rows)
        if self.radius is None:
            return over_box
        return over_box.maximum((rows * self.centre).flatten(2).sum(2) - self.radius * rows.flatten(2).norm(dim=2))


def _box(images: Tensor, eps: Tensor, low: Tensor | float, high: Tensor | float) -> Interval:
    wide = eps.view(-1, *(1,) * (images.ndim - 1))
    return Interval((images - wide).clamp(min=low), (images + wide).clamp(max=high))
