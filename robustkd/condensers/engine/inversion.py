"""Inversion of a trained network: images that it is sure about, and whose BatchNorm statistics are those of its training data.

    repeat for each picture of one image a class:
        X <- X - lr * Adam( grad  CE(f(A(X)), y) + r_bn * sum_l w_l ( || mean_l(X) - m_l || + || var_l(X) - v_l || ) )

over the BatchNorm layers l with their running statistics m_l, v_l, the first one with a larger weight w_l. A is a random crop that is
brought to full size again, a flip and a shift. The statistics are of a whole batch, so that a batch has an image of each class.

Source: Yin, Xu, Liu et al.: Squeeze, recover and relabel: dataset condensation at ImageNet scale from a new perspective (SRe2L, NeurIPS
2023), arXiv:2306.13092, section 3; first weight and optimiser as in the authors' code. There the image of the lowest loss is to be kept,
but that loss is never updated, so that the last one is: it is here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from robustkd.condensers.engine.augmentation import mirrored
from robustkd.condensers.engine.synthetic import Learnt, StepLoss, SyntheticParams, optimised, shown, start_images
from robustkd.contracts import Arrays, FitContext, SoftArrays, UsageError
from robustkd.lazy import F, nn, torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import InputHook, input_hooks
from robustkd.targets.frozen import frozen
from robustkd.targets.training import adam

if TYPE_CHECKING:
    from torch import Tensor

BETAS = (0.5, 0.9)


class InversionParams(SyntheticParams):
    """Parameters of condensers by inversion."""

    start: Literal["real", "noise"] = Field("noise", description="where the pixels start: random training images, or noise")
    steps: int = Field(1_000, ge=1, description="steps of each image")
    lr: float = Field(0.25, gt=0, description="of the pixels (Adam), which falls along a cosine")
    r_bn: float = Field(0.01, ge=0, description="weight of the BatchNorm statistics; 0 for a network without any")
    first_bn: float = Field(10.0, ge=0, description="weight of the first BatchNorm layer, to that of the others")
    smallest_crop: float = Field(0.08, gt=0, le=1, description="the smallest share of the image that a random crop shows")
    jitter: int = Field(2, ge=0, description="pixels by which the image is shifted at most, around its edges")
    labels: Literal["soft", "hard"] = Field(
        "soft", description="soft: the network's own probabilities of each image are stored"
    )


class Statistics:
    """How far the statistics of a batch are from the running ones, in the block of ``with``.

    Args:
        module: the network, in evaluation mode.
        first: the weight of its first BatchNorm layer.

    Raises:
        UsageError: the network has no such layer.
    """

    def __init__(self, module: nn.Module, first: float) -> None:
        self._layers = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
        if not self._layers:
            raise UsageError(
                "the network to be inverted has no BatchNorm, whose statistics are to be matched",
                fix="invert one that has, such as convnet (norm: batch) or resnet20, or give r_bn: 0",
            )
        self._weights = [first, *([1.0] * (len(self._layers) - 1))]
        self._terms: list[Tensor] = []
        self._hooks = input_hooks(
            self._layers,
            [self._noting(weight) for weight in self._weights],
        )

    def __enter__(self) -> Statistics:
        self._hooks.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self._hooks.__exit__(*details)

    def _noting(self, weight: float) -> InputHook:
        """A hook that notes how far what a layer is given is away, times ``weight``."""

        def note(layer: Any, arguments: tuple[Any, ...]) -> None:
            self._terms.append(weight * away(layer, arguments[0]))

        return note

    def taken(self) -> Tensor:
        """The sum over the layers of the last pass."""
        terms, self._terms = self._terms, []
        return torch.stack(terms).sum()


def away(layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """|| mean - running mean || + || variance - running variance || of what a BatchNorm layer is given, (B, C, H, W)."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    return _length(mean - layer.running_mean) + _length(variance - layer.running_var)


def _length(x: Tensor) -> Tensor:
    """The norm; at 0 its gradient is 0, where that of ``norm`` is not a number."""
    square = x.square().sum()
    return torch.where(square > 0, square.clamp_min(1e-30).sqrt(), 0.0)


def inverted(
    context: FitContext[Arrays], target: ClassifierTarget, params: InversionParams, smallest: Callable[[int], float]
) -> Arrays:
    """Images of each class from ``target``, with its answers to them or the labels alone.

    Args:
        smallest: the smallest share of the image that a crop of a step shows.
    """
    start, labels = start_images(context, params)
    images = start.clone()
    with frozen(target.module):
        for number, rows in enumerate(one_of_each(labels)):
            images[rows] = _recovered(context, target, params, smallest, f"picture-{number}", start[rows], labels[rows])
        with torch.no_grad():
            soft = target(images).float().softmax(1)
    pixels, hard = images.cpu().numpy(), labels.cpu().numpy()
    return SoftArrays(pixels, hard, soft.cpu().numpy()) if params.labels == "soft" else Arrays(pixels, hard)


def _recovered(
    context: FitContext[Arrays],
    target: ClassifierTarget,
    params: InversionParams,
    smallest: Callable[[int], float],
    name: str,
    start: Tensor,
    labels: Tensor,
) -> Tensor:
    images, p = nn.Parameter(start.clone()), params

    def loss(step: int, generator: torch.Generator) -> Tensor:
        return inversion_loss(target, p, images, labels, smallest(step), generator)

    return with_adam(context, name, {"images": images}, loss, p)["images"]


def inversion_loss(
    target: ClassifierTarget, params: InversionParams, x: Tensor, y: Tensor, smallest: float, generator: torch.Generator
) -> Tensor:
    """The cross entropy at augmented images, and how far their statistics are from those of the network.

    Args:
        smallest: the smallest share of the image that the crop shows.
    """
    x, y = shown(x, y, params)
    x = shifted(cropped(x, smallest, generator), params.jitter, generator)
    if not params.r_bn:
        return F.cross_entropy(target(x), y)
    with Statistics(target.module, params.first_bn) as statistics:
        value = F.cross_entropy(target(x), y)
    return value + params.r_bn * statistics.taken()


def with_adam(
    context: FitContext[Arrays], name: str, learnt: dict[str, nn.Parameter], loss: StepLoss, params: InversionParams
) -> dict[str, Tensor]:
    """What was learnt by Adam at a rate that falls along a cosine."""

    def rate(step: int) -> float:
        return params.lr * 0.5 * (1 + math.cos(math.pi * step / params.steps))

    pace = Learnt(learnt, adam(list(learnt.values()), params.lr, betas=BETAS), rate, {})
    return optimised(context, name, pace, loss, params.steps, params.model_dump(mode="json"))


def one_of_each(labels: Tensor) -> list[Tensor]:
    """The rows of each picture: the first image of every class, the second of every class, and so on."""
    place = torch.zeros_like(labels)
    for label in labels.unique():
        mine = labels == label
        place[mine] = torch.arange(int(mine.sum()), device=labels.device)
    return [(place == number).nonzero().flatten() for number in range(int(place.max()) + 1)]


def cropped(x: Tensor, smallest: float, generator: torch.Generator) -> Tensor:
    """A random part of the images, between ``smallest`` and all of their area, at full size; mirrored with probability 1/2."""
    share, ratio, down, right, flip = torch.rand(5, generator=generator).tolist()
    side, shape = math.sqrt(smallest + (1 - smallest) * share), math.exp((2 * ratio - 1) * math.log(4 / 3) / 2)
    high, wide = min(1.0, side / shape), min(1.0, side * shape)
    rows = [[wide, 0, (2 * right - 1) * (1 - wide)], [0, high, (2 * down - 1) * (1 - high)]]
    grid = F.affine_grid(
        torch.tensor(rows, dtype=x.dtype, device=x.device).expand(len(x), 2, 3), list(x.shape), align_corners=False
    )
    seen = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return mirrored(seen) if flip < 0.5 else seen


def shifted(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """The images shifted by up to ``most`` pixels each way; what leaves at one edge comes in at the other."""
    down, right = (torch.randint(2 * most + 1, (2,), generator=generator) - most).tolist()
    return x.roll((down, right), (2, 3))
