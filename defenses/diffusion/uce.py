"""UCE: unified concept editing (Gandikota et al. 2024, equation 7). No training: each projection W of the cross-attention (keys and
values) has a closed form,

    W = (sum_erased v* c^T + preserve sum_kept W_0 c c^T + ridge W_0) (sum_erased c c^T + preserve sum_kept c c^T + ridge I)^-1

where c runs over the encoded tokens of the texts, and v* = W_0 c* is what the original makes of the text that takes the place of an
erased one. It minimises

    sum_erased ||W c - v*||^2 + preserve sum_kept ||W c - W_0 c||^2 + ridge ||W - W_0||^2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import FitContext, Prompts
from robustkd.defenses.diffusion.erasing import ErasingParams, begin, encoded_together
from robustkd.defenses.diffusion.text_to_image_defense import TextToImageDefense
from robustkd.lazy import torch
from robustkd.targets.frozen import without_gradients
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor, nn


class UCEParams(ErasingParams):
    instead: str = Field("", description="the text that takes the place of an erased one")
    preserve: float = Field(1.0, ge=0, description="weight of each kept token")
    ridge: float = Field(0.1, gt=0, description="weight of staying with the original projection")


class UCE(TextToImageDefense):
    """Let the cross-attention take an erased text for another one."""

    Params = UCEParams
    source = "Gandikota et al., Unified concept editing in diffusion models, WACV 2024, arXiv:2308.14761"

    def fit(self, context: FitContext[Prompts]) -> TextToImageTarget:
        """Replace the projections of a copy of the base.

        Raises:
            UsageError, DataError: see ``erasing.begin``.
        """
        erasure = begin(context, self.params)
        target = erasure.target
        erased, kept = (encoded_tokens(target, texts.every()) for texts in (erasure.forget, erasure.retain))
        # Position by position: the tokens of the other text, at the places of the erased ones.
        instead = encoded_tokens(target, [self.params.instead]).repeat(len(erasure.forget.every()), 1)
        layers = projections(target)
        weights = (layer.weight.cpu().double() for layer in layers)
        with torch.no_grad():
            for layer, weight in zip(layers, self.edited(weights, erased, instead, kept), strict=True):
                layer.weight.copy_(weight)
        return target

    def edited(self, weights: Iterable[Tensor], erased: Tensor, instead: Tensor, kept: Tensor) -> Iterable[Tensor]:
        """What takes the place of each of the projections' weights, (out, D); see ``edited`` for the tokens."""
        p = self.params
        return (edited(weight, erased, instead, kept, p.preserve, p.ridge) for weight in weights)


def projections(target: TextToImageTarget) -> list[nn.Linear]:
    """The layers that make keys and values of the text."""
    modules = target.unet.named_modules()
    return [module for name, module in modules if name.endswith(("attn2.to_k", "attn2.to_v"))]


def edited(weight: Tensor, erased: Tensor, instead: Tensor, kept: Tensor, preserve: float, ridge: float) -> Tensor:
    """The closed form, (out, D), for rows of encoded tokens: (N, D) erased, (N, D) in their place, (M, D) kept."""
    penalty = ridge * torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    kept_outer = preserve * kept.T @ kept + penalty
    values = weight @ (instead.T @ erased + kept_outer)
    # W A = values with a symmetric A, so W^T solves A W^T = values^T.
    return torch.linalg.solve(erased.T @ erased + kept_outer, values.T).T


@without_gradients()
def encoded_tokens(target: TextToImageTarget, texts: list[str]) -> Tensor:
    """(len(texts) (T - 1), D) float64 on the CPU, as not every device has that.

    Every position but the first, which is the same for all texts.
    """
    return encoded_together(target, texts).tokens[:, 1:].flatten(0, 1).cpu().double()
