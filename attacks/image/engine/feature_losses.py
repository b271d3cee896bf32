"""How far features are apart, and what of an image is high in frequency: the losses of those who see an encoder and no head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from robustkd.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

FeatureDistance = Literal["cos", "l2"]


def squared_distance(features: Tensor, wanted: Tensor) -> Tensor:
    """(B,) ||f - g||^2 of (B, D) features, summed over the dimensions, in float32 at least."""
    wide = features.float() if features.element_size() < 4 else features
    return (wide - wanted.to(wide.dtype)).square().sum(1)


def distance(features: Tensor, wanted: Tensor, kind: FeatureDistance) -> Tensor:
    """(B,) how far apart (B, D) features are: ``cos``, 1 - cos, or ``l2``, the squared distance."""
    if kind == "cos":
        return 1 - F.cosine_similarity(features, wanted, dim=1)
    return squared_distance(features, wanted)


def info_nce(queries: Tensor, keys: Tensor, temperature: float | Tensor) -> Tensor:
    """(B,) -log softmax_j(q_i . k_j / temperature) at j = i of (B, D) unit vectors: each query's own key among all of the batch.

    Source: van den Oord et al.: Representation learning with contrastive predictive coding (2018), equation 4.
    """
    return _own_among_all(queries @ keys.T / temperature)


def symmetric_info_nce(one: Tensor, other: Tensor, temperature: float | Tensor) -> Tensor:
    """The mean of ``info_nce`` over (B, D) unit vectors that belong together row by row, and over both directions: CLIP's loss.

    Source: Radford et al.: Learning transferable visual models from natural language supervision (2021), figure 3.
    """
    similarities = one @ other.T / temperature
    return (_own_among_all(similarities) + _own_among_all(similarities.T)).mean() / 2


def _own_among_all(similarities: Tensor) -> Tensor:
    own = torch.arange(len(similarities), device=similarities.device)
    return F.cross_entropy(similarities, own, reduction="none")


def high_frequencies(images: Tensor, radius: float) -> Tensor:
    """(B, C, H, W) -> the same without the frequencies below ``radius``; 0 leaves all, 1 takes away the mean alone.

    Frequencies are whole numbers of waves over the image, their size that of the pair (down, right).
    """
    waves = [torch.fft.fftfreq(size, 1 / size, device=images.device) for size in images.shape[-2:]]
    kept = (waves[0].square().unsqueeze(1) + waves[1].square().unsqueeze(0)).sqrt() >= radius
    found: Tensor = torch.fft.ifft2(torch.fft.fft2(images) * kept).real
    return found
