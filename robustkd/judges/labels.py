"""What judges of images share: which classes of a classifier count as a concept, and images of the classifier's own size.

A request's column ``concept`` names what it asks for. The class of that name counts, and what ``accepted`` names for it: with nothing
there the judge is strict, with synonyms and neighbours it is lax. A campaign can have both: the first judge decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from robustkd.contracts import DataError, Params, Prompts, UsageError
from robustkd.contracts.extras import installation
from robustkd.data.text import comparable
from robustkd.lazy import F, torch
from robustkd.scoring.finite import require_finite

if TYPE_CHECKING:
    from torch import Tensor

Classes = tuple[str, ...] | Literal["imagenet"]


class LabelParams(Params):
    """Parameters of judges with classes."""

    classes: Classes | None = Field(
        None, description="names of the classifier's classes, in its order, or 'imagenet'; default: those that it comes with"
    )
    accepted: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="by concept, more classes that count as it (a lax judge)"
    )
    top: int = Field(1, ge=1, description="an accepted class is among this many likeliest ones")
    confidence: float = Field(0.0, ge=0, le=1, description="and has at least this probability")


def named(classes: Classes) -> tuple[str, ...]:
    """The classes by name, those of ImageNet from torchvision.

    Raises:
        UsageError: those of ImageNet are wanted, and torchvision, which has them, is not installed.
    """
    if classes != "imagenet":
        return tuple(classes)
    try:
        from torchvision.models import ResNet50_Weights
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            "the names of ImageNet's classes come with torchvision",
            fix=f"{installation('torchvision')}, or list the classes",
        ) from error
    return tuple(ResNet50_Weights.IMAGENET1K_V2.meta["categories"])


def shows(probabilities: Tensor, requests: Prompts, classes: Sequence[str], params: LabelParams) -> np.ndarray:
    """(N,) bool: whether an accepted class is among the likeliest ones of (N, K) probabilities, and likely enough.

    Raises:
        DataError: the classes do not contain a request's concept, or something that is accepted.
        TargetError: a probability is NaN.
    """
    require_finite(probabilities, "the probabilities of the judge's classifier", "pictures")
    if probabilities.shape[1] != len(classes):
        raise DataError(
            f"the judge gives {probabilities.shape[1]} numbers for an image, and {len(classes)} classes are named",
            fix="name its classes, in its order: classes: [..]",
        )
    sets = {concept: places_of(concept, classes, params.accepted) for concept in dict.fromkeys(requests["concept"])}
    counts = torch.zeros_like(probabilities, dtype=torch.bool)
    for row, concept in enumerate(requests["concept"]):
        counts[row, sets[concept]] = True
    likeliest = probabilities.topk(min(params.top, len(classes)), dim=1)
    reached = counts.gather(1, likeliest.indices) & (likeliest.values >= params.confidence)
    return reached.any(1).cpu().numpy()


def places_of(concept: str, classes: Sequence[str], accepted: Mapping[str, Sequence[str]]) -> list[int]:
    """The places among ``classes`` of those that count as the concept.

    Raises:
        DataError: there is none, or something that is accepted is not among them.
    """
    place_of = {comparable(name): place for place, name in enumerate(classes)}
    also = [name for key, names in accepted.items() if comparable(key) == comparable(concept) for name in names]
    missing = [name for name in also if comparable(name) not in place_of]
    places = [place_of[form] for name in (concept, *also) if (form := comparable(name)) in place_of]
    if missing or not places:
        listed = ", ".join(classes[:20]) + (f" and {len(classes) - 20} more" if len(classes) > 20 else "")
        raise DataError(
            f"the judge has no class '{missing[0] if missing else concept}'; its classes are: {listed}",
            fix=f"name classes that count as '{concept}': accepted: {{'{concept}': [..]}}, or take another judge",
        )
    return places


def sized(images: Sequence[Tensor], shape: Sequence[int | None]) -> Tensor:
    """(N, C, H, W), the images with C channels and H x W pixels (bilinear, with antialiasing); None leaves a side as it is.

    Raises:
        DataError: they have another number of channels, and are not grey; or they are of several sizes, and a side is None.
    """
    channels, height, width = shape
    if len({image.shape for image in images}) > 1:
        if height is None or width is None:
            raise DataError("the pictures are of several sizes, and the judge's network leaves its own open", fix="give 'size'")
        return torch.cat([sized([image], shape) for image in images])
    stacked = torch.stack([image.float() for image in images])
    if channels is not None and stacked.shape[1] != channels:
        if stacked.shape[1] != 1:
            raise DataError(
                f"the judge looks at images of {channels} channels, the model draws {stacked.shape[1]}",
                fix="take another judge",
            )
        stacked = stacked.expand(-1, channels, -1, -1)
    size = (height or stacked.shape[2], width or stacked.shape[3])
    if stacked.shape[2:] == size:
        return stacked
    return F.interpolate(stacked, size=size, mode="bilinear", antialias=True).clamp(0, 1)
