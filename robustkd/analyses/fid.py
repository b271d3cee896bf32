"""FID: how far what a model draws is from real images, as two Gaussians in the feature space of a named network.

    FID = |m - m'|^2 + Tr( S + S' - 2 (S S')^(1/2) )

with mean and covariance of the features of each set, in float64. A number means something beside another one with the same network,
the same real images and the same number of images: it is biased upwards by an amount that falls with that number, and much where
there are fewer images than features.

Source: Heusel et al.: GANs trained by a two time-scale update rule (NeurIPS 2017), section 3; on the bias Chong & Forsyth:
Effectively unbiased FID and Inception score (CVPR 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import Analysis, GenerativeTarget, Params, PromptBatch, Table, TargetError, TargetRef, ThreatModel
from robustkd.judges.labels import sized
from robustkd.lazy import torch
from robustkd.targets import ImageTarget
from robustkd.targets.activations import with_penultimate
from robustkd.targets.memory import in_memory

if TYPE_CHECKING:
    from torch import Tensor

_TOGETHER = 64


class FIDParams(Params):
    network: TargetRef = Field(
        description="the defense whose network gives the features: the judge's, or an Inception by 'external-classifier'",
        examples=["classifier"],
    )
    layer: str | None = Field(None, description="a submodule's output; default: what its last linear layer is given")


def frechet(features: Tensor, others: Tensor) -> float:
    """The distance of two sets of (N, D) and (M, D) features; both have two rows at least."""
    features, others = features.double(), others.double()
    gap = (features.mean(0) - others.mean(0)).square().sum()
    own, other = features.T.cov(correction=1), others.T.cov(correction=1)
    # Tr (S S')^(1/2) is the sum of the roots of the eigenvalues of S^(1/2) S' S^(1/2), which is symmetric.
    values, vectors = torch.linalg.eigh(torch.atleast_2d(own))
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    both = torch.linalg.eigvalsh(root @ torch.atleast_2d(other) @ root).clamp_min(0).sqrt().sum()
    return float(gap + torch.atleast_2d(own).trace() + torch.atleast_2d(other).trace() - 2 * both)


class FID(Analysis[GenerativeTarget, PromptBatch]):
    """The Fréchet distance between what harmless requests give and the real images that they describe."""

    Params = FIDParams
    needs_of_others = frozenset({"logits"})
    modalities = ("text-to-image",)
    source = "Heusel et al. 2017, arXiv:1706.08500"

    def run(self, target: GenerativeTarget, batch: PromptBatch, threat: ThreatModel, seed: int) -> Table:
        """One row; ``metrics``: fid.

        Raises:
            TargetError: there are no harmless requests with images, or the network has no such layer.
        """
        network = self.target(self.params.network, ImageTarget)
        if batch.benign is None or batch.benign.requests.images is None or len(batch.benign.requests) < 2:
            raise TargetError(
                "FID compares with real images of the harmless requests, and the data have none", fix="leave the analysis out"
            )
        real = torch.from_numpy(batch.benign.requests.images)
        real = real.float() / 255 if real.dtype == torch.uint8 else real
        drawn, given = (self._features(network, images) for images in (batch.benign.outputs, list(real)))
        value = frechet(drawn, given)
        count, size = given.shape
        layer = self.params.layer or "what the last linear layer is given"
        few = (
            f"; fewer images than the {size} features: much too high, compare at the same number alone" if count <= size else ""
        )
        return Table(
            caption=f"Fréchet distance of {count} drawn images from {count} real ones, in the features of {self.params.network} "
            f"({layer}){few}",
            rows=["drawn for harmless requests"],
            columns=["FID", "images", "features"],
            values=[[value, float(count), float(size)]],
            metrics={"fid": value},
        )

    def _features(self, network: ImageTarget, images: Sequence[Tensor]) -> Tensor:
        """(N, D) float64 on the CPU."""

        def features(part: Tensor) -> Tensor:
            return _at(network, part.to(network.device), self.params.layer).flatten(1).cpu().double()

        with torch.no_grad():
            return torch.cat(in_memory(features, sized(images, network.input_shape), _TOGETHER))


def _at(network: ImageTarget, images: Tensor, layer: str | None) -> Tensor:
    if layer is not None:
        return network.features(images, [layer])[layer]
    return with_penultimate(network, images)[1]
