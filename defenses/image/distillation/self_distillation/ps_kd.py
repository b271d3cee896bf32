"""PS-KD: progressive self-knowledge distillation. The network's own answers of the epoch before soften its labels.

    min_w  CE( (1 - a_e) * onehot(y) + a_e * p_{e-1}(x),  S(x) ),      a_e = alpha * (e + 1) / E

p_{e-1}(x) is what S said of x when it was trained on it one epoch ago (of the augmented x, as the authors do); in the first epoch
the target is the label.

Good for accuracy and calibration without a teacher. No adversarial example is seen, so none is withstood.

Source: Kim et al.: Self-knowledge distillation with progressive refinement of targets (ICCV 2021), equations 3 and 5; settings
those of CIFAR-100.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import FitContext
from robustkd.defenses.training import Minibatch, NetworkParams, OneNetwork, Prepared, Recipe
from robustkd.defenses.training.params import EpochsParam
from robustkd.lazy import F, torch
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class PSKDParams(NetworkParams):
    """Parameters of ``ps-kd``. The paper trains on CIFAR with ``augment: crop-flip``."""

    epochs: EpochsParam = 300
    alpha: float = Field(
        0.8, ge=0, le=1, description="weight of the own answer in the last epoch; it grows linearly up to there"
    )


class PSKDRecipe(Recipe[ClassifierTarget]):
    """Cross entropy with labels that the network softens.

    Args:
        labels: (N,) of the training data.
        num_classes: K.
        params: the defense's.

    Attributes:
        answers: (N, K) what was said last of each training image.
    """

    supports_data_parallel = False  # each process would know its own answers only

    def __init__(self, labels: Tensor, num_classes: int, params: PSKDParams) -> None:
        self.params = params
        self.answers = F.one_hot(labels, num_classes).float()

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """CE with the softened labels; the answers are replaced by the new ones."""
        logits = target(batch.x)
        share = self.params.alpha * (batch.epoch + 1) / self.params.epochs
        hard = F.one_hot(batch.y, logits.shape[1]).float()
        soft = (1 - share) * hard + share * self.answers[batch.index]
        self.answers[batch.index] = logits.detach().float().softmax(1)
        return F.cross_entropy(logits, soft), {"label_weight": (soft * hard).sum(1).mean()}

    def tensors(self) -> dict[str, Tensor]:
        """The network's last answer on each training image."""
        return {"answers": self.answers}

    @override
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.answers = tensors["answers"]


class PSKD(OneNetwork):
    """A network that is its own teacher, one epoch late."""

    Params = PSKDParams
    source = "Kim et al. 2021, arXiv:2006.12000"

    @contextmanager
    def training(self, context: FitContext, student: ClassifierTarget) -> Iterator[Prepared]:
        """The loss, with the labels as the first answers, and the network."""
        labels = torch.tensor(context.train.labels, dtype=torch.int64, device=context.device)
        yield PSKDRecipe(labels, context.num_classes, self.params), student
