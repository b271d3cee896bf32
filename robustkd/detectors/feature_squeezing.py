"""Feature squeezing: an image whose answer changes when the image is made simpler is rejected.

    score(x) = max_s || softmax f(x) - softmax f(s(x)) ||_1        over squeezers s

A squeezer keeps what an image shows and little else. It changes the answer to a clean image little, and takes much of a perturbation that
was made without it. For grey digits the authors join one bit a pixel and a median of 2x2; for colour images five bits, a median of 2x2 and
non-local means. The last is left out here; otherwise the defaults are theirs for grey images.

Rounding has no gradient and declares the identity: an attack takes ``bpda``.

Control: a squeezer that changes nothing, ``{kind: bit-depth, bits: 8}``.

Source: Xu, Evans & Qi: Feature squeezing: detecting adversarial examples in deep neural networks (NDSS 2018), arXiv:1704.01155, sections
III and V. That it falls to an attack which knows it: He et al.: Adversarial example defenses: ensembles of weak defenses are not strong
(WOOT 2017), arXiv:1706.04701, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator
from typing_extensions import override

from robustkd.contracts import BaseTarget, Detector, Params, Target, TargetError
from robustkd.lazy import nn, torch
from robustkd.targets import TransformSpec

if TYPE_CHECKING:
    from torch import Tensor


class FeatureSqueezingParams(Params):
    """The squeezers."""

    squeezers: tuple[TransformSpec, ...] = Field(
        ({"kind": "bit-depth", "bits": 1}, {"kind": "median"}),
        validate_default=True,
        min_length=1,
        description="input transforms, each applied to the image by itself (robustkd list transforms)",
    )

    @field_validator("squeezers")
    @classmethod
    def _ready(cls, squeezers: tuple[TransformSpec, ...]) -> tuple[TransformSpec, ...]:
        for spec in squeezers:
            if spec.make().learns:
                raise ValueError(f"transform '{spec.kind}' must be trained, and no detector trains it")
        return squeezers


class Squeezed(nn.Module):
    """The score.

    Args:
        target: the classifier.
        squeezers: (B, C, H, W) -> the same.
    """

    def __init__(self, target: Target, squeezers: list[nn.Module]) -> None:
        super().__init__()
        self.squeezers = nn.ModuleList(squeezers)
        self.target = target

    def forward(self, inputs: Tensor, logits: Tensor) -> Tensor:
        """(B, C, H, W) and (B, K) -> (B,) in [0, 2]."""
        known = logits.softmax(1)
        away = [(known - self.target(squeeze(inputs)).softmax(1)).abs().sum(1) for squeeze in self.squeezers]
        return torch.stack(away).amax(0)


class FeatureSqueezing(Detector):
    """How far squeezed images change the answer."""

    Params: ClassVar[type[Params]] = FeatureSqueezingParams
    source = "Xu, Evans & Qi 2018, arXiv:1704.01155"

    @override
    def build(self, model: Target, others: Mapping[str, BaseTarget]) -> nn.Module:
        if model.bounds != (0.0, 1.0):
            raise TargetError(f"squeezers work on pixels in [0, 1], the model's are in {model.bounds}")
        return Squeezed(model, [spec.make().build(model.input_shape) for spec in self.params.squeezers])
