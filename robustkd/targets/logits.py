"""What a classifier returns: logits, or something that has been through a softmax.

Log-probabilities are logits up to a number that is the same for all classes of a sample, so every loss on logits means on them what
it means on logits. Of probabilities the logarithm is taken. A second softmax of them would be almost uniform: of probabilities
(1, 0, .., 0) of ten classes it gives 0.23 to the first.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from robustkd.contracts.random import preserved_rng
from robustkd.lazy import torch
from robustkd.targets.classifier import ClassifierTarget
from robustkd.targets.frozen import frozen

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.contracts import Target

Outputs: TypeAlias = Literal["logits", "probabilities", "log-probabilities"]
PROBED = 8
_LOG = logging.getLogger(__name__)


def outputs_of(values: Tensor) -> Outputs:
    """What (N, K) outputs are: probabilities lie in [0, 1] and sum to 1 (tolerance 1e-5); of log-probabilities logsumexp is 0 (1e-4)."""
    wide = values.detach().float().cpu().numpy().astype(np.float64)  # by NumPy: not every device has float64
    if (wide >= 0).all() and (wide <= 1).all() and (abs(wide.sum(1) - 1) < 1e-5).all():
        return "probabilities"
    return "log-probabilities" if (abs(np.logaddexp.reduce(wide, 1)) < 1e-4).all() else "logits"


def outputs_of_target(target: Target) -> Outputs:
    """What a classifier returns for a few images of noise: enough, since a softmax is there for every input or for none."""
    low, high = target.bounds
    noise = torch.rand(PROBED, *target.input_shape, generator=torch.Generator().manual_seed(0)) * (high - low) + low
    device = target.device
    with frozen(target.module), torch.no_grad(), preserved_rng(device):
        return outputs_of(target(noise.to(device)))


def as_logits(target: ClassifierTarget, what: str) -> ClassifierTarget:
    """The same network, with the logarithm behind it where it returns probabilities; the log says so, and calls it ``what``.

    The card of such a target has ``{"outputs": "probabilities"}`` in its origin.
    """
    from robustkd.targets.modules import LogOfProbabilities  # late: it imports torch

    if outputs_of_target(target) != "probabilities":
        return target
    _LOG.warning("%s returns probabilities; their logarithm takes the place of its logits", what)
    origin = None if target.origin is None else target.origin | {"outputs": "probabilities"}
    shape, classes = target.input_shape, target.num_classes
    module = LogOfProbabilities(target.module)
    found = ClassifierTarget(module, num_classes=classes, input_shape=shape, origin=origin, bounds=target.bounds)
    found.classes = target.classes
    return found


def softmax_inside(target: Target) -> bool:
    """Whether the logarithm was put behind the target's network, or behind one that it is made of."""
    from robustkd.targets.modules import LogOfProbabilities  # late: it imports torch

    return any(isinstance(part, LogOfProbabilities) for part in target.module.modules())
