"""The losses that attacks maximize: functions of logits, one value a sample, larger is more adversarial.

Each takes (B, K) logits and (B,) classes. Untargeted, the classes are the labels to get away from; the targeted forms
take the classes to reach.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field

from robustkd.attacks.image.engine.loss_gradients import require_classes
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

LossName = Literal["ce", "margin", "dlr"]
LossParam: TypeAlias = Annotated[LossName, Field(description="the loss to maximize: cross entropy, logit margin, or DLR")]
Loss: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) -log softmax(z)_y, with a gradient that stays exact where the network is sure."""
    from robustkd.attacks.image.engine.autograd import CrossEntropy  # late: it imports torch

    value: Tensor = CrossEntropy.apply(logits, labels)
    return value


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{j != y} z_j - z_y: positive exactly when the sample is misclassified (Carlini & Wagner 2017, f_6)."""
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    return logits.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1) - own


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio: the margin over z_(1) - z_(3), so that scaling the logits changes nothing.

    Source: Croce & Hein 2020, equation 6. Needs three classes.
    """
    require_classes(logits, 3, "DLR")
    ordered = logits.topk(3, dim=1).values
    return margin(logits, labels) / (ordered[:, 0] - ordered[:, 2] + 1e-12)


def scale_free(logits: Tensor, labels: Tensor) -> Tensor:
    """``dlr`` where it is defined; with two classes the margin, of which it would be a multiple by a constant."""
    return dlr(logits, labels) if logits.shape[1] >= 3 else margin(logits, labels)


def scale_free_towards(logits: Tensor, goals: Tensor) -> Tensor:
    """Targeted ``dlr`` where it is defined, from four classes on; below, the targeted margin."""
    return (_targeted_dlr if logits.shape[1] >= 4 else _targeted_margin)(logits, goals)


def targeted(loss: LossName) -> Loss:
    """The form of ``loss`` that grows as the goal class is approached.

    For ``dlr`` the denominator leaves the third and fourth logits, as in Croce & Hein 2020, equation 7.
    """
    return {"ce": _targeted_ce, "margin": _targeted_margin, "dlr": _targeted_dlr}[loss]


def untargeted(loss: LossName) -> Loss:
    """The loss called ``loss``, which grows as the label is left."""
    return {"ce": cross_entropy, "margin": margin, "dlr": dlr}[loss]


def _targeted_ce(logits: Tensor, goals: Tensor) -> Tensor:
    return -cross_entropy(logits, goals)


def _targeted_margin(logits: Tensor, goals: Tensor) -> Tensor:
    return -margin(logits, goals)


def _targeted_dlr(logits: Tensor, goals: Tensor) -> Tensor:
    require_classes(logits, 4, "targeted DLR")
    ordered = logits.topk(4, dim=1).values
    return -margin(logits, goals) / (ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2 + 1e-12)
