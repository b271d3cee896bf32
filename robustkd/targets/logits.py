"""What a classifier returns: logits, or something else that logits are made of (``targets.outputs``).

Log-probabilities are logits up to a number that is the same for all classes of a sample, so every loss on logits means on them what
it means on logits. Of probabilities the logarithm is taken. A second softmax of them would be almost uniform: of probabilities
(1, 0, .., 0) of ten classes it gives 0.23 to the first.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from robustkd.contracts.random import preserved_rng
from robustkd.data.multi_label import Label
from robustkd.lazy import torch
from robustkd.scoring.probabilities import Outputs, outputs_of
from robustkd.targets.classifier import ClassifierTarget
from robustkd.targets.failure import model_errors_explained
from robustkd.targets.frozen import frozen
from robustkd.targets.outputs import Classes, infer_output_format

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.contracts import Target

PROBED = 8
_LOG = logging.getLogger(__name__)


def _noise(target: Target) -> Tensor:
    low, high = (torch.as_tensor(bound, dtype=torch.float32).cpu() for bound in target.bounds)
    noise = torch.rand(PROBED, *target.input_shape, generator=torch.Generator().manual_seed(0)) * (high - low) + low
    return noise.to(target.device)


def outputs_of_target(target: Target) -> Outputs:
    """What a classifier returns for a few images of noise: enough, since a softmax is there for every input or for none."""
    device = target.device
    with frozen(target.module), torch.no_grad(), preserved_rng(device):
        return outputs_of(target(_noise(target)))


def as_logits(
    target: ClassifierTarget,
    what: str,
    *,
    samples: Tensor | None = None,
    classes: Classes | None = None,
    label: Label | None = None,
) -> ClassifierTarget:
    """The same network, with behind it what makes logits of its outputs (``targets.outputs``); the log says so, and calls it ``what``.

    The card of such a target has the steps in its origin, such as ``{"outputs": "probabilities"}``. The target itself is returned where
    there are none.

    Args:
        target: of ``num_classes`` 0 as many classes are made as its network has outputs.
        samples: (N, *shape), a few that the network is tried on; noise by default.
        classes, label: see ``outputs.OutputFormat``.

    Raises:
        TargetError: the network raised, or returns nothing that is (N, K).
        UsageError: ``classes`` or ``label`` do not fit it.
    """
    device, K = target.device, target.num_classes

    def ask(x: Tensor) -> object:
        with model_errors_explained(x):
            return target.answer(x)

    def noise() -> Tensor:
        return _noise(target)

    first = noise() if samples is None else samples
    with frozen(target.module), torch.no_grad(), preserved_rng(device):
        output_format, outputs, returned = infer_output_format(
            ask, first, noise=noise, expected=None if classes or label is not None else K, classes=classes, label=label
        )
    if told := output_format.description(returned):
        _LOG.warning("%s returns %s", what, told)
    module = output_format.append_to(target.module, outputs)
    if module is target.module and K:
        return target
    origin = None if target.origin is None else {**target.origin, **output_format.to_origin(outputs)}
    count = output_format.width(outputs) if not K or classes or label is not None else K
    found = ClassifierTarget(module, num_classes=count, input_shape=target.input_shape, origin=origin, bounds=target.bounds)
    found.classes = target.classes
    return found


def softmax_inside(target: Target) -> bool:
    """Whether the logarithm was put behind the target's network, or behind one that it is made of."""
    from robustkd.targets.modules import LogOfProbabilities  # late: it imports torch

    return any(isinstance(part, LogOfProbabilities) for part in target.module.modules())
