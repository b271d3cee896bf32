"""DataDAM: data distillation with attention matching. Where a random network looks, and its last features, are the same for both sets.

    a_l(x) = v / ||v||,   v = sum_channels |F_l(x)|^p  as a vector,        F_l the maps behind each ReLU but the last
    min_X  E_theta  w * ( sum_c sum_l || mean_real a_l - mean_syn a_l ||^2  +  b * sum_c || mean_real f - mean_syn f ||^2 )

f are the features in front of the last linear layer.

From the authors: the terms, w = 100, b = 0.01, SGD on the pixels from real images, all classes in one pass. The paper's power is p = 4;
their code is run with 1, as is ours by default. From us: pixels are kept in [0, 1]; there is no choice among evaluations on the test data,
which theirs reports.

Control: ``dm``, which matches the mean features alone, and ``random-subset``.

Source: Sajedi et al.: DataDAM: efficient dataset distillation with attention matching (ICCV 2023), arXiv:2310.00093, section 3; settings as
in the authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from robustkd.condensers.engine.distributions import DistributionMatching, DistributionParams
from robustkd.contracts import Params, UsageError
from robustkd.lazy import nn, torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import output_hooks, with_penultimate

if TYPE_CHECKING:
    from torch import Tensor


class DataDAMParams(DistributionParams):
    batch_size: int = Field(128, ge=1, description="real images of each class in a step")
    power: float = Field(1.0, gt=0, description="p, of the activations; the paper's 4")
    weight: float = Field(100.0, ge=0, description="w, of the whole loss")
    balance: float = Field(0.01, ge=0, description="b, of the features, to the attention")


class DataDAM(DistributionMatching):
    """Images that random networks look at as at the real ones."""

    Params: ClassVar[type[Params]] = DataDAMParams
    source = "Sajedi et al. 2023, arXiv:2310.00093"

    def compared(self, network: ClassifierTarget, x: Tensor) -> list[tuple[float, Tensor]]:
        """The attention of each layer, and the features in front of the last linear one."""
        p, maps = self.params, []
        layers = [layer for layer in network.module.modules() if isinstance(layer, nn.ReLU)]
        with output_hooks(layers, [lambda layer, arguments, output: maps.append(output)] * len(layers)):
            _, features = with_penultimate(network, x)
        spatial = [found for found in maps if found.dim() == 4][:-1]
        if not spatial:
            raise UsageError(
                "attention is of the maps behind each ReLU but the last, and this network has fewer than two",
                fix="name a model with nn.ReLU layers, such as convnet or small-cnn",
            )
        return [*((p.weight, attention(found, p.power)) for found in spatial), (p.weight * p.balance, features)]


def attention(maps: Tensor, power: float) -> Tensor:
    """(B, C, H, W) -> (B, H * W) of length 1."""
    summed = maps.abs().pow(power).sum(1).flatten(1)
    return summed / summed.norm(dim=1, keepdim=True).clamp_min(torch.finfo(summed.dtype).tiny)
