"""IAD: introspective adversarial distillation. Where the teacher fails on x~, the student also listens to itself.

    x~ = argmax_{x' in ball(x)} CE(S(x'), y)                                          from a uniform point
    min_S  tau^2 * KL(T(x; tau) || S(x~; tau)) + (1 - a_x) * KL(S(x) || S(x~)),   a_x = p_T(y | x~)^beta

``a_x`` is 1 for the first epochs (60 of 200), until the student is worth listening to. Both arguments of the second divergence are
differentiated, as in TRADES. This is the form of the authors' IAD-I: the paper's own equation also weighs the first term by a_x.

Good where the teacher errs on the student's adversarial examples. In the first epochs, before the student is worth listening
to, it is ``ard`` without hard labels: short trainings see little else.

Source: Zhu et al.: Reliable adversarial distillation with unreliable teachers (ICLR 2022), equation 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.defenses.training import Minibatch, RobustDistillation, RobustDistillationParams, TeacherRecipe, kl
from robustkd.defenses.training.divergence import scaled
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class IADParams(RobustDistillationParams):
    """Parameters of ``iad``. The paper trains on CIFAR with ``augment: crop-flip``."""

    weight_decay: float = Field(2e-4, ge=0, description="L2 penalty (decoupled for adamw)")
    temperature: float = Field(1.0, gt=0, description="tau, of teacher and student in the first term")
    beta: float = Field(0.1, ge=0, description="exponent of the teacher's confidence in the label")
    introspect_from: float = Field(60 / 200, ge=0, le=1, description="share of the epochs before the second term sets in")


class IADRecipe(TeacherRecipe):
    """Divergence of S(x~) from T(x), and from S(x) as far as the teacher cannot be relied on."""

    def inner(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, ...]:
        """x~ and T(x); and 1 - a_x once the student is asked."""
        x_adv, p = self.adversary(target, batch, self.teacher), self.params
        if batch.epoch < round(p.introspect_from * p.epochs):
            return x_adv, self.teacher.clean(batch)
        confidence = self.teacher(x_adv).float().softmax(1).gather(1, batch.y[:, None]).squeeze(1)
        return x_adv, self.teacher.clean(batch), 1 - confidence**p.beta

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


class IAD(RobustDistillation):
    """A student that trusts its teacher as far as the teacher holds on x~."""

    Params = IADParams
    recipe = IADRecipe
    source = "Zhu et al. 2022, arXiv:2106.04928"
