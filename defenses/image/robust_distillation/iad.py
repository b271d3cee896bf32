"""IAD and AdaIAD: introspective adversarial distillation. Where the teacher fails on x~, the student also listens to itself.

    x~ = argmax_{x' in ball(x)} CE(S(x'), y)                                          from a uniform point
    min_S  tau^2 * KL(T(x; tau) || S(x~; tau)) + (1 - a_x) * KL(S(x) || S(x~)),   a_x = p_T(y | x~)^beta

``a_x`` is 1 for the first epochs (60 of 200), until the student is worth listening to. Both arguments of the second divergence are
differentiated, as in TRADES. This is the form of the authors' IAD-I: the paper's own equation also weighs the first term by a_x.

AdaIAD is the same with AdaAD's inner maximisation and the teacher asked on x~, where a_x says how far it holds:

    x~ = argmax_{x' in ball(x)} KL(T(x') || S(x'))                                    from x + 0.001 * N(0, 1)
    min_S  tau^2 * a_x * KL(T(x~; tau) || S(x~; tau)) + (1 - a_x) * KL(S(x) || S(x~))

Good where the teacher errs on the student's adversarial examples. In the first epochs, before the student is worth listening
to, it is ``ard`` without hard labels: short trainings see little else.

Source: Zhu et al.: Reliable adversarial distillation with unreliable teachers (ICLR 2022), equation 3. AdaIAD is of Huang et al.
(CVPR 2023), see adaad.py; no code of theirs for it was found, so that a_x on the first term, IAD's own equation, is how the paper was
understood.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.defenses.image.robust_distillation.adaad import AdaADInner
from robustkd.defenses.training import Minibatch, RobustDistillation, RobustDistillationParams, TeacherRecipe, kl
from robustkd.defenses.training.divergence import scaled
from robustkd.defenses.training.params import WeightDecayParam
from robustkd.lazy import torch
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class IADParams(RobustDistillationParams):
    """Parameters of ``iad``. The paper trains on CIFAR with ``augment: crop-flip``."""

    weight_decay: WeightDecayParam = 2e-4
    temperature: float = Field(1.0, gt=0, description="tau, of teacher and student in the first term")
    beta: float = Field(0.1, ge=0, description="exponent of the teacher's confidence in the label")
    introspect_from: float = Field(60 / 200, ge=0, le=1, description="share of the epochs before the second term sets in")


class AdaIADParams(IADParams):
    """Parameters of ``adaiad``. The paper trains on CIFAR with ``augment: crop-flip``."""

    inner: AdaADInner = Field(default_factory=AdaADInner, description="the examples of the adversarial branch")


class IADRecipe(TeacherRecipe):
    """Divergence of S(x~) from T(x), and from S(x) as far as the teacher cannot be relied on."""

    def inner(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, ...]:
        """x~ and T(x); and 1 - a_x once the student is asked."""
        x_adv, p = self.adversary(target, batch, self.teacher), self.params
        if batch.epoch < round(p.introspect_from * p.epochs):
            return x_adv, self.teacher.clean(batch)
        return x_adv, self.teacher.clean(batch), 1 - confidence(self.teacher(x_adv), batch.y) ** p.beta

    def outer(self, target: ClassifierTarget, batch: Minibatch, inner: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """tau^2 * KL(T(x; tau) || S(x~; tau)) + mean of (1 - a_x) * KL(S(x) || S(x~))."""
        x_adv, soft, *doubt = inner
        p, tau, logits = self.params, self.params.temperature, target(x_adv)
        taught = kl(soft, logits, teacher_temperature=tau, student_temperature=tau, reduction=p.kl_reduction)
        if not doubt:
            return tau**2 * taught, {"loss_taught": taught}
        own = (doubt[0] * kl(target(batch.x), logits, reduction="none")).mean()
        own = scaled(own, logits.shape[1], p.kl_reduction)
        return tau**2 * taught + own, {"loss_taught": taught, "loss_own": own}


class AdaIADRecipe(TeacherRecipe):
    """Divergence of S(x~) from T(x~) as far as the teacher can be relied on, from S(x) as far as it cannot."""

    def inner(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, ...]:
        """x~, T(x~) and a_x, which is 1 before the student is asked."""
        x_adv, p = self.adversary(target, batch, self.teacher), self.params
        soft = self.teacher(x_adv)
        trust = confidence(soft, batch.y) ** p.beta
        early = batch.epoch < round(p.introspect_from * p.epochs)
        return x_adv, soft, torch.ones_like(trust) if early else trust

    def outer(self, target: ClassifierTarget, batch: Minibatch, inner: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean of tau^2 * a_x * KL(T(x~; tau) || S(x~; tau)) + (1 - a_x) * KL(S(x) || S(x~))."""
        x_adv, soft, trust = inner
        p, tau, logits = self.params, self.params.temperature, target(x_adv)
        taught = tau**2 * kl(soft, logits, teacher_temperature=tau, student_temperature=tau, reduction="none")
        own = kl(target(batch.x), logits, reduction="none")
        losses = {"loss_taught": (trust * taught).mean(), "loss_own": ((1 - trust) * own).mean()}
        losses = {name: scaled(loss, logits.shape[1], p.kl_reduction) for name, loss in losses.items()}
        return losses["loss_taught"] + losses["loss_own"], losses


def confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) the probability of each sample's label, from (B, K) logits."""
    return logits.float().softmax(1).gather(1, labels[:, None]).squeeze(1)


class IAD(RobustDistillation):
    """A student that trusts its teacher as far as the teacher holds on x~."""

    Params = IADParams
    recipe = IADRecipe
    source = "Zhu et al. 2022, arXiv:2106.04928"


class AdaIAD(RobustDistillation):
    """IAD's trust on AdaAD's examples: a student taught where it differs most from its teacher, as far as that one holds."""

    Params = AdaIADParams
    recipe = AdaIADRecipe
    source = "Huang et al. 2023 (CVPR)"
