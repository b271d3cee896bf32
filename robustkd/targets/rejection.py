"""A target that rejects inputs: what its outputs say of the classes, and what somebody sees who knows the classifier alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from robustkd.contracts import Target, WrappedTarget
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class ClassifierAlone(WrappedTarget):
    """The classifier of a target that ``rejects``: its outputs without the last one."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.rejects = False
        self.num_classes = target.num_classes - 1

    @override
    def __call__(self, inputs: Tensor) -> Tensor:
        return self.target(inputs)[:, :-1]


def classifier_alone(target: Target) -> Target:
    """The target without its detector; itself where it rejects nothing."""
    return ClassifierAlone(target) if target.rejects else target


def class_logits(target: Target, outputs: Tensor, labels: Tensor) -> Tensor:
    """(B, K) logits of (B, K) outputs: the outputs themselves. Of a target that ``rejects``, whose last output of K + 1 says so, to be
    rejected counts as to be taken for the label:

        z_y <- max(z_y, z_rejected)

    So another class is the largest where the target is wrong and accepts, and every loss climbs towards that. The margin follows the
    classifier until it is fooled, and then whichever of classifier and detector is nearer to its boundary: of a rejected input that is
    the detector alone, as in the selective gradients of Bryniarski et al. 2022, arXiv:2106.15023.

    Args:
        outputs: what ``target``, or one around it, said.
        labels: (B,) the true classes.
    """
    if not target.rejects:
        return outputs
    own = labels.unsqueeze(1)
    logits, rejected = outputs[:, :-1], outputs[:, -1:]
    return logits.scatter(1, own, torch.maximum(logits.gather(1, own), rejected))
