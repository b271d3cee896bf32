"""Dynamic contrastive distillation: a student learns which text is an image's against the texts that its teacher finds hard.

    d_i   = 1 - softmax_k(t_i . v_k / tau)_{y_i}                         how hard the teacher finds image i
    N_i   = the ``hard`` texts of other classes nearest to t_i           its negatives
    l_i   = -log( e^{s_i . v_{y_i} / tau} / (e^{s_i . v_{y_i} / tau} + sum_{j in N_i} e^{s_i . u_j / tau}) )
    w_i   = softmax over the minibatch of ( growth * epoch / (epochs - 1) * d_i )
    min_S   sum_i w_i l_i + distil * mean_i KL( T || S )                 over the class vectors, at tau

In the first epoch all samples weigh the same; the hard ones weigh more, the longer the training goes on.

Good for a student that is to tell apart what its teacher can hardly tell apart. ``growth: 0`` with ``hard`` as large as there are texts
is the control: the same losses without the teacher's opinion of what is hard.

From the authors (abstract alone): contrastive distillation, the teacher's estimate of hard negatives, and weights that change with the
training. From us: the form of both, the class vectors as positives, and the texts of every class with every adjective as negatives;
the student has an image tower of its own, and its teacher's texts.

Source: Rao et al.: Dynamic contrastive distillation for image-text retrieval (2022), arXiv:2207.01426, abstract.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import FitContext, Target
from robustkd.defenses.image.representations.encoders.class_texts import text_pool
from robustkd.defenses.image.representations.encoders.held_out import HeldOutDefense, without_classes
from robustkd.defenses.image.representations.encoders.towers import TowerStudentParams, fresh_student, frozen_towers
from robustkd.defenses.training import DistillationRecipe, Minibatch, Teacher, kl, train
from robustkd.lazy import F, torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.encoder import EncoderTarget
from robustkd.targets.two_tower import TEMPERATURE

if TYPE_CHECKING:
    from torch import Tensor


class DCDParams(TowerStudentParams):
    tau: float = Field(TEMPERATURE, gt=0, description="temperature of all terms")
    hard: int = Field(16, ge=1, description="negatives of each image; all texts of other classes where there are fewer")
    growth: float = Field(4.0, ge=0, description="how much more hard samples weigh in the last epoch; 0 for equal weights")
    distil: float = Field(1.0, ge=0, description="weight of the divergence from the teacher over the class vectors")


class DCDRecipe(DistillationRecipe):
    """Weighted contrastive losses, and the divergence.

    Args:
        teacher: of features.
        params: the defense's.
        vectors: (K, D) of the classes, of length 1.
        texts: (N, D) of all texts, of length 1.
        classes: (N,) int64, the class of each.
    """

    def __init__(self, teacher: Teacher, params: DCDParams, vectors: Tensor, texts: Tensor, classes: Tensor) -> None:
        super().__init__(teacher, params)
        self.vectors, self.texts, self.classes = vectors, texts, classes

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """sum_i w_i l_i + distil * mean KL."""
        p = self.params
        s = EncoderTarget(target)(batch.x).float()
        t = F.normalize(self.teacher.clean(batch).float(), dim=1)
        theirs, ours = t @ self.vectors.T / p.tau, s @ self.vectors.T / p.tau
        difficulty = 1 - theirs.softmax(1).gather(1, batch.y[:, None]).squeeze(1)
        progress = batch.epoch / max(1, p.epochs - 1)
        weights = sample_weights(difficulty, p.growth * progress)
        negatives = hard_negatives(t, self.texts, self.classes, batch.y, p.hard)
        contrastive = (weights * contrast(s, self.vectors[batch.y], self.texts, negatives, p.tau)).sum()
        divergence = kl(theirs, ours, reduction="batch")
        return contrastive + p.distil * divergence, {"loss_contrastive": contrastive.detach()}


def sample_weights(difficulty: Tensor, slope: float) -> Tensor:
    """(B,) weights of sum 1 that rise with the (B,) difficulty, the more the larger the slope; equal ones at 0."""
    return (slope * difficulty).softmax(0)


def hard_negatives(t: Tensor, texts: Tensor, classes: Tensor, labels: Tensor, count: int) -> Tensor:
    """(B, N) bool: of each image the ``count`` texts of other classes that are nearest to the teacher's (B, D) features."""
    foreign = classes.unsqueeze(0) != labels.unsqueeze(1)
    near = (t @ texts.T).masked_fill(~foreign, -torch.inf)
    chosen = torch.zeros_like(foreign).scatter(1, near.topk(min(count, texts.shape[0]), dim=1).indices, True)
    return chosen & foreign


def contrast(s: Tensor, own: Tensor, texts: Tensor, negatives: Tensor, tau: float) -> Tensor:
    """(B,) -log of the share of each image's own text, (B, D), among it and its negatives."""
    positive = (s * own).sum(1, keepdim=True) / tau
    others = (s @ texts.T / tau).masked_fill(~negatives, -torch.inf)
    return torch.cat([positive, others], 1).logsumexp(1) - positive.squeeze(1)


class DCD(HeldOutDefense):
    """A student of hard negatives and hard samples, as its teacher sees them."""

    Params = DCDParams
    reads_texts = True
    source = "Rao et al. 2022, arXiv:2207.01426"

    def fit(self, context: FitContext) -> Target:
        """Distil; the epoch is chosen by validation accuracy."""
        p, seen = self.params, without_classes(context, self.params.held_out)
        with frozen_towers(seen, p.teacher, p, features=True) as (towers, teacher):
            texts, classes = text_pool(context, towers)
            recipe = DCDRecipe(teacher, p, towers.vectors, texts, classes)
            return train(seen, fresh_student(context, towers, p.student, p.student_params), recipe, p)
