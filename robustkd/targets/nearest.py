"""A network of stored images: each input is answered by the nearest of them. Importing it imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.lazy import nn, torch

if TYPE_CHECKING:
    from torch import Tensor


class NearestImage(nn.Module):
    """z_k(x) = - min || x - x_i ||^2 over the stored images x_i of class k; of a class without any, a number below all others.

    Args:
        images: (N, C, H, W) uint8 or float32 in [0, 1].
        labels: (N,) int64.
        soft: (N, K) float32 distributions, which are stored along, or None.
        num_classes: K.
    """

    images: Tensor
    labels: Tensor
    soft: Tensor | None

    def __init__(self, images: Tensor, labels: Tensor, soft: Tensor | None, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("images", images)
        self.register_buffer("labels", labels)
        self.register_buffer("soft", soft)
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        stored = self.images.to(x.dtype).flatten(1)
        stored = stored / 255 if self.images.dtype == torch.uint8 else stored
        x = x.flatten(1)
        square = x.square().sum(1, keepdim=True) - 2 * x @ stored.T + stored.square().sum(1)
        absent = -2 * square.new_tensor(x.shape[1])  # no two images of [0, 1]^D are that far apart
        own = [self.labels == label for label in range(self.num_classes)]
        return torch.stack([-square[:, rows].amin(1) if bool(rows.any()) else absent.expand(len(x)) for rows in own], 1)
