"""The budget of images that look alike to a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, TypeAlias, TypeVar

import numpy as np
from typing_extensions import override

from robustkd.contracts.budget import Space
from robustkd.contracts.errors import UsageError
from robustkd.contracts.image_changes.change import ImageChange
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

SELF = "self"
"""The metric whose features are those of the attacked network itself (the paper's self-bounded attacks)."""
Features: TypeAlias = "Callable[[Tensor], Tensor]"
"""(B, C, H, W) images -> (B, D) features, differentiable; those of an image depend on no other one."""
_ROUNDING = 1e-4
_Measured = TypeVar("_Measured", "Tensor", np.ndarray)


@dataclass(frozen=True)
class PerceptualBudget(ImageChange):
    """Every image whose features are within ``eps`` of the clean one's, in the 2-norm.

    The features are those of a network, as in LPIPS without learnt weights: the activations of each layer, divided at each place by
    their 2-norm over the channels and by the root of the number of places. The distance of a layer's activations is then at most 2.

    The network is the attacked one, or another that the user names: a defense of the same campaign, or an entry of ``models`` in
    Python. Results hold its name; a budget that was read from them measures nothing.

    Source: Laidlaw, Singla, Feizi: Perceptual adversarial robustness (ICLR 2021), arXiv:2006.12655, section 3 (the neural perceptual
    threat model); Zhang et al.: The unreasonable effectiveness of deep features as a perceptual metric (CVPR 2018), arXiv:1801.03924.

    Attributes:
        metric: the name of the network, or ``self``.
        layers: the submodules whose outputs are compared; where none are named, they are chosen (``targets.features``).
        features: the features themselves, once the network is at hand. A function of one's own may be given under a name of its own.
    """

    eps: float
    metric: str = SELF
    layers: tuple[str, ...] = ()
    features: Features | None = field(default=None, compare=False, repr=False)
    kind: ClassVar[Space] = "perceptual"
    unit: ClassVar[str] = "distance of features"
    fix: ClassVar[str] = "move the image towards the clean one until budget.distance(clean, image, {}) is eps or less"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (self.metric, *self.layers):
            if not name or set(name) & set("(),+="):
                raise UsageError(
                    f"threat model: the name '{name}' of a metric or a layer has one of ( ) , + = in it, or is empty",
                    fix="give it another name",
                )

    @property
    @override
    def references(self) -> tuple[str, ...]:
        return () if self.metric == SELF else (self.metric,)

    @property
    def known_features(self) -> Features:
        """The features.

        Raises:
            UsageError: the network is not at hand.
        """
        if self.features is None:
            raise UsageError(
                f"the threat model ({self}) measures by a network that was not handed over",
                fix="in a campaign, name a defense of the same file; in Python, pass models={"
                + repr(self.metric)
                + ": a network}",
            )
        return self.features

    @override
    def distance(self, clean: Tensor, adversarial: Tensor, extras: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            seen = self.known_features
            length: Tensor = torch.linalg.vector_norm(seen(adversarial) - seen(clean), dim=1)
            return length.nan_to_num(torch.inf).to(clean.dtype)

    @override
    def within(self, spent: _Measured, allowed: _Measured | float) -> _Measured:
        return spent <= allowed * (1 + _ROUNDING) + _ROUNDING**2  # a network's own rounding depends on the size of the batch

    def __str__(self) -> str:
        by = "" if self.metric == SELF else f" by {self.metric}"
        return f"perceptual <= {self.eps:.4g}{by}{' at ' if self.layers else ''}{', '.join(self.layers)}"
