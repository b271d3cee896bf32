"""AKD2 and IAD-II: two teachers' answers on x~ beside the label. IAD-II trusts the robust one as far as it holds.

    x~ = argmax_{x' in ball(x)} CE(S(x'), y)                                          from a uniform point
    AKD2     min_S  (1 - l_1 - l_2) * CE(S(x~), y) + l_1 * tau^2 * KL(T_adv(x~; tau) || S(x~; tau))
                                                   + l_2 * tau^2 * KL(T_nat(x~; tau) || S(x~; tau)),   l_1 = 1/2, l_2 = 1/4
    IAD-II   the second term is l_1 * mean of (a_x * tau^2 * KL(T_adv(x~; tau) || S(x~; tau)) + (1 - a_x) * KL(S(x) || S(x~))),
             a_x = p_T_adv(y | x~)^beta, from a fifth of the epochs on (40 of 200)

The teachers of the papers have the student's architecture, one trained on adversarial examples and one on clean images. ``akd2`` is the
control of ``iad-ii``, and ``pgd-at`` that of ``akd2``.

Source: Chen, Zhang, Liu, Chang, Wang: Robust overfitting may be mitigated by properly learned smoothening (ICLR 2021), which also
averages the weights (``swa``); Zhu et al.: Reliable adversarial distillation with unreliable teachers (ICLR 2022). IAD-II.py of
github.com/ZFancy/IAD was read, where tau^2 is also on IAD-II's second divergence, whose temperature is 1 as here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from robustkd.contracts import ModelName, ThreatModel
from robustkd.contracts.params import ModelParams
from robustkd.defenses.image.robust_distillation.iad import confidence
from robustkd.defenses.image.robust_distillation.mtard import MTARDTeachers, TwoTeacherDistillation
from robustkd.defenses.training import (
    AdversarialRecipe,
    Adversary,
    AWPParams,
    InnerMaximisation,
    Minibatch,
    Teacher,
    TrainParams,
    kl,
)
from robustkd.defenses.training.adversarial import AWP, IGDM, KLReduction
from robustkd.defenses.training.divergence import scaled
from robustkd.defenses.training.gradient_matching import GradientMatchingParams
from robustkd.defenses.training.params import WeightDecayParam
from robustkd.lazy import F
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class AKD2Params(TrainParams):
    """Parameters of ``akd2``. The paper trains on CIFAR with ``augment: crop-flip``."""

    weight_decay: WeightDecayParam = 2e-4
    teachers: MTARDTeachers = Field(description="the two that the student learns from, both on adversarial images")
    student: ModelName = Field(description="the student's architecture: a model plug-in")
    student_params: ModelParams = Field(default_factory=dict)
    inner: InnerMaximisation = Field(default_factory=InnerMaximisation, description="the examples to train on")
    awp: AWPParams | None = Field(None, description=AWP)
    igdm: GradientMatchingParams | None = Field(None, description=IGDM)
    robust_weight: float = Field(0.5, ge=0, le=1, description="l_1, of the robust teacher")
    clean_weight: float = Field(0.25, ge=0, le=1, description="l_2, of the clean teacher; the label gets the rest")
    temperature: float = Field(1.0, gt=0, description="tau, of teachers and student")
    kl_reduction: KLReduction = Field("batch", description="batch, the definition and the authors'; batch-and-class: KL / K")

    @model_validator(mode="after")
    def _leaves_the_label_its_share(self) -> AKD2Params:
        if self.robust_weight + self.clean_weight > 1:
            raise ValueError("robust_weight and clean_weight are more than 1 together")
        return self


class IADIIParams(AKD2Params):
    """Parameters of ``iad-ii``. The paper trains on CIFAR with ``augment: crop-flip``."""

    beta: float = Field(0.1, ge=0, description="exponent of the robust teacher's confidence in the label")
    introspect_from: float = Field(40 / 200, ge=0, le=1, description="share of the epochs before the student is asked as well")


class AKD2Recipe(AdversarialRecipe):
    """Cross entropy on x~, and divergences from both teachers there."""

    def __init__(self, clean: Teacher, robust: Teacher, adversary: Adversary, threat: ThreatModel, params: AKD2Params) -> None:
        super().__init__(adversary, threat, params)
        self.clean, self.robust = clean, robust
        self.match_gradients(robust)

    def inner(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, ...]:
        """x~, T_adv(x~) and T_nat(x~)."""
        x_adv = self.adversary(target, batch)
        return x_adv, self.robust(x_adv), self.clean(x_adv)

    def outer(self, target: ClassifierTarget, batch: Minibatch, inner: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """(1 - l_1 - l_2) * CE(S(x~), y) + l_1 * what the robust teacher adds + l_2 * tau^2 * KL(T_nat(x~; tau) || S(x~; tau))."""
        x_adv, soft_robust, soft_clean = inner
        p, logits = self.params, target(x_adv)
        taught = {
            "loss_robust": self.by_robust_teacher(target, batch, soft_robust, logits),
            "loss_clean": self.divergence(soft_clean, logits),
        }
        losses = {name: scaled(loss.mean(), logits.shape[1], p.kl_reduction) for name, loss in taught.items()}
        hard = F.cross_entropy(logits, batch.y)
        loss = (1 - p.robust_weight - p.clean_weight) * hard
        return loss + p.robust_weight * losses["loss_robust"] + p.clean_weight * losses["loss_clean"], losses

    def by_robust_teacher(self, target: ClassifierTarget, batch: Minibatch, soft: Tensor, logits: Tensor) -> Tensor:
        """(B,) what the robust teacher's answers on x~ cost the student's ``logits`` there."""
        return self.divergence(soft, logits)

    def divergence(self, soft: Tensor, logits: Tensor) -> Tensor:
        """(B,) tau^2 * KL(softmax(soft / tau) || softmax(logits / tau))."""
        tau = self.params.temperature
        return tau**2 * kl(soft, logits, teacher_temperature=tau, student_temperature=tau, reduction="none")


class IADIIRecipe(AKD2Recipe):
    """AKD2's losses, with the student's own answer where the robust teacher is not to be relied on."""

    def by_robust_teacher(self, target: ClassifierTarget, batch: Minibatch, soft: Tensor, logits: Tensor) -> Tensor:
        """(B,) a_x * tau^2 * KL(T_adv(x~; tau) || S(x~; tau)) + (1 - a_x) * KL(S(x) || S(x~))."""
        p, taught = self.params, self.divergence(soft, logits)
        if batch.epoch < round(p.introspect_from * p.epochs):
            return taught
        trust = confidence(soft, batch.y) ** p.beta
        return trust * taught + (1 - trust) * kl(target(batch.x), logits, reduction="none")


class AKD2(TwoTeacherDistillation):
    """A student of a robust and a clean teacher on adversarial images, and of the labels."""

    Params = AKD2Params
    recipe = AKD2Recipe
    source = "Chen et al. 2021 (ICLR)"


class IADII(AKD2):
    """AKD2 that trusts its robust teacher as far as that one holds on x~."""

    Params = IADIIParams
    recipe = IADIIRecipe
    source = "Zhu et al. 2022, arXiv:2106.04928"
