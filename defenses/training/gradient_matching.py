"""IGDM: indirect gradient distillation. A term that any method with a robust teacher can have beside its loss.

    d = x~ - x
    L + alpha * (epoch / epochs) * KL(softmax(T(x + d) - T(x - d)) || softmax(S(x + d) - S(x - d)))

To first order the difference of the logits is twice the product of their gradient and d, so the student's gradient at x follows the
teacher's along d. It costs two passes of both networks. The epochs count from 1, and x - d may leave the pixel range, as in the
authors' code; alpha is 1 there on CIFAR-10, 10 on CIFAR-100 and Tiny ImageNet. (That code gives its inner maximisation eps and step
size in each other's place; here they are the campaign's.)

Source: Lee, Lee, Jang, Park, Bae, Kim: Indirect gradient matching for adversarial robust distillation (ICLR 2025,
arXiv:2312.03286); igdm.py of github.com/HongsinLee/saad was read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import Params
from robustkd.defenses.training.batches import Minibatch
from robustkd.defenses.training.divergence import kl
from robustkd.defenses.training.teachers import Teacher
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class GradientMatchingParams(Params):
    """How strongly the student's gradients are matched with the teacher's."""

    alpha: float = Field(1.0, gt=0, description="weight in the last epoch; it grows in proportion to the epochs")


@dataclass(frozen=True)
class GradientMatching:
    """The term of one training.

    Attributes:
        teacher: T.
        alpha: its weight in the last epoch.
        epochs: how many there are.
    """

    teacher: Teacher
    alpha: float
    epochs: int

    def __call__(self, target: ClassifierTarget, batch: Minibatch, x_adv: Tensor) -> Tensor:
        """(B,) the weighted divergence of each sample, differentiable in the student.

        Args:
            target: S.
            batch: x, and the epoch.
            x_adv: (B, C, H, W) x~.
        """
        opposite = 2 * batch.x - x_adv
        taught = self.teacher(x_adv) - self.teacher(opposite)
        return self.weight(batch) * kl(taught, target(x_adv) - target(opposite), reduction="none")

    def weight(self, batch: Minibatch) -> float:
        """alpha * epoch / epochs."""
        return self.alpha * (batch.epoch + 1) / self.epochs
