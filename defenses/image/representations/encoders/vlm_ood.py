"""Distilling a large vision-language model so that the student generalises: four ways to be like the teacher at once.

    L = w_cls CE(cos(s, v) / tau, y)                         s, t unit features of student and teacher, v the class vectors
      + w_mse mean_{x that the teacher gets right} ||s - t||^2
      + w_cst [ InfoNCE(s, t; tau) + InfoNCE(t, s; tau) ] / 2
      + w_vl  mean_i CE( p_t restricted to the k texts that t_i is nearest to,  the student's softmax over the same texts )

The last term gives the student the teacher's neighbourhood of texts, not the one class alone. Where the teacher has a text tower, the texts
are captions of all classes with every adjective; else they are the class vectors.

Good for a student that is to answer for shifted images and for classes that it did not see (``held_out``). With three weights at 0 each
term is its own control; ``w_cls`` alone knows no teacher but for the texts.

From the authors: the four terms, the mask, tau 0.07, both directions, k nearest texts; ResNet-18, 90 epochs, SGD at 0.1, batches of 128 or
256, steps after 30 and 60. From us: the texts, which they enrich by a language model, the mean of both directions, and the weights of 1.

Source: Li et al.: Distilling large vision-language model with out-of-distribution generalizability (ICCV 2023), section 4; the authors'
code xuanlinli17/large_vlm_distillation_ood, main_experiments.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from robustkd.attacks.image.engine.feature_losses import squared_distance, symmetric_info_nce
from robustkd.contracts import FitContext, Target
from robustkd.defenses.image.representations.encoders.class_texts import text_pool
from robustkd.defenses.image.representations.encoders.held_out import HeldOutDefense, without_classes
from robustkd.defenses.image.representations.encoders.towers import TowerStudentParams, fresh_student, frozen_towers
from robustkd.defenses.training import DistillationRecipe, Minibatch, Teacher, train
from robustkd.defenses.training.params import EpochsParam
from robustkd.lazy import F, torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.encoder import EncoderTarget
from robustkd.targets.two_tower import TEMPERATURE

if TYPE_CHECKING:
    from torch import Tensor


class VLMOODParams(TowerStudentParams):
    milestone_fractions: ClassVar[tuple[float, ...]] = (1 / 3, 2 / 3)

    epochs: EpochsParam = 90
    tau: float = Field(TEMPERATURE, gt=0, description="temperature of all terms")
    w_cls: float = Field(1.0, ge=0, description="weight of the labels' texts")
    w_mse: float = Field(1.0, ge=0, description="weight of the teacher's features, where it is right")
    w_cst: float = Field(1.0, ge=0, description="weight of telling the teacher's features of one image from those of others")
    w_vl: float = Field(1.0, ge=0, description="weight of the teacher's nearest texts")
    nearest: int = Field(256, ge=1, description="k, how many texts; all where there are fewer")


class VLMOODRecipe(DistillationRecipe):
    """The four terms.

    Args:
        teacher: of features.
        params: the defense's.
        vectors: (K, D) of the classes, of length 1.
        texts: (N, D) of all texts, of length 1.
    """

    def __init__(self, teacher: Teacher, params: VLMOODParams, vectors: Tensor, texts: Tensor) -> None:
        super().__init__(teacher, params)
        self.vectors, self.texts = vectors, texts

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum."""
        p = self.params
        s = EncoderTarget(target)(batch.x).float()
        t = F.normalize(self.teacher.clean(batch).float(), dim=1)
        terms = {
            "loss_cls": F.cross_entropy(s @ self.vectors.T / p.tau, batch.y),
            "loss_mse": features_where_right(s, t, self.vectors, batch.y),
            "loss_cst": symmetric_info_nce(s, t, p.tau),
            "loss_vl": nearest_texts(s, t, self.texts, p.nearest, p.tau),
        }
        weights = (p.w_cls, p.w_mse, p.w_cst, p.w_vl)
        total = sum((weight * term for weight, term in zip(weights, terms.values(), strict=True)), torch.zeros_like(s[0, 0]))
        return total, {name: term.detach() for name, term in terms.items()}


def features_where_right(s: Tensor, t: Tensor, vectors: Tensor, labels: Tensor) -> Tensor:
    """The mean of ||s - t||^2 over the samples whose t is nearest to the vector of its label; 0 where there is none."""
    right = ((t @ vectors.T).argmax(1) == labels).to(s.dtype)
    return (squared_distance(s, t) * right).sum() / right.sum().clamp(min=1)


def nearest_texts(s: Tensor, t: Tensor, texts: Tensor, k: int, tau: float) -> Tensor:
    """Mean cross entropy of the student's softmax over the k texts nearest to t, with the teacher's over the same as its labels."""
    theirs, places = (t @ texts.T / tau).topk(min(k, len(texts)), dim=1)
    ours = (s @ texts.T / tau).gather(1, places)
    return -(theirs.softmax(1) * ours.log_softmax(1)).sum(1).mean()


class VLMOOD(HeldOutDefense):
    """A student of a vision-language model's features, texts and neighbourhoods."""

    Params = VLMOODParams
    reads_texts = True
    source = "Li et al. 2023, arXiv:2307.03135"

    def fit(self, context: FitContext) -> Target:
        """Distil; the epoch is chosen by validation accuracy."""
        p, seen = self.params, without_classes(context, self.params.held_out)
        with frozen_towers(seen, p.teacher, p, features=True) as (towers, teacher):
            recipe = VLMOODRecipe(teacher, p, towers.vectors, text_pool(context, towers)[0])
            return train(seen, fresh_student(context, towers, p.student, p.student_params), recipe, p)
