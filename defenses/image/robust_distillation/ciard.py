"""CIARD: cyclic iterative adversarial robustness distillation. MTARD's two teachers, one pushed away from, one kept in training.

    min_S  w_nat * L_nat + w_adv * L_adv - s * KL(T_nat(x~) || S(x~; tau = 5))       last term where T_nat(x~) is wrong
    min_T_adv  CE(T_adv(x~), y)                                                      from 1/6 of the epochs on, lr 1e-4, cosine

x~, L_nat and L_adv are those of B-MTARD (mtard.py), w_nat = w_adv = 1/2. A divergence has no upper bound, so s is the power of
ten that brings the push down (or up) to the magnitude of the smaller of the two losses. The robust teacher is retrained on a copy
of the campaign's, in evaluation mode: its BatchNorm statistics stay (the authors train them as well).

Good where the robust teacher may be trained on. It costs a second training beside the student's; in
``robust-distillation-small`` it does not differ from ``mtard``'s journal form.

Source: Lu et al.: CIARD: cyclic iterative adversarial robustness distillation (ICCV 2025); s, the temperature and the teacher's
settings are those of the authors' code. That code weighs both losses by 1 and not by 1/2, so that its push is half as strong beside them,
and keeps the student's rate at 0.1 for 150 epochs before a damped cosine; here the schedule is MTARD's. It deploys the epoch with the best
mean of clean and robust accuracy on the test data: ``selection: weighted`` does so on the validation data.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from robustkd.contracts import FitContext, Target, ThreatModel
from robustkd.defenses.image.robust_distillation.mtard import MTARD, MTARDParams, MTARDRecipe
from robustkd.defenses.training import Adversary, Minibatch, Teacher, fresh_network, frozen_teacher, kl, teacher, train
from robustkd.defenses.training.auxiliary import AuxiliaryNetwork
from robustkd.lazy import F
from robustkd.targets import ClassifierTarget
from robustkd.targets.training import sgd

if TYPE_CHECKING:
    from torch import Tensor

TEACHER_MOMENTUM, TEACHER_WEIGHT_DECAY = 0.1, 2e-4


class CIARDParams(MTARDParams):
    """Parameters of ``ciard``. The paper trains on CIFAR with ``augment: crop-flip``."""

    form: Literal["conference", "journal"] = Field("journal", description="journal also balances the teachers' temperatures")
    balance_loss: bool = Field(False, description="let the weights follow the relative losses, else 1/2 each")
    push_temperature: float = Field(5.0, gt=0, description="tau of the student in the push")
    teacher_lr: float = Field(1e-4, gt=0, description="rate of the robust teacher; it falls by a cosine")
    teacher_from: float = Field(50 / 300, ge=0, le=1, description="share of the epochs before the robust teacher is retrained")


def push_away(z_nat: Tensor, student: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """KL(softmax(z_nat) || softmax(student / tau)), averaged over the samples where z_nat is wrong; 0 if it is right on all."""
    wrong = (z_nat.argmax(1) != labels).to(student.dtype)
    divergence = kl(z_nat, student, student_temperature=temperature, reduction="none")
    return (wrong * divergence).sum() / wrong.sum().clamp_min(1)


def push_scale(push: Tensor, *losses: Tensor) -> Tensor:
    """The power of ten between the magnitudes of ``push`` and of the smallest of ``losses``; a constant."""
    return 10 ** (min(_magnitude(loss) for loss in losses) - _magnitude(push))


def _magnitude(loss: Tensor) -> Tensor:
    return loss.detach().float().abs().clamp_min(1e-7).log10().floor()


class CIARDRecipe(MTARDRecipe):
    """B-MTARD's losses, the push, and the robust teacher's own training.

    Args:
        clean: T_nat.
        robust: T_adv, in evaluation mode; its weights are trained.
        adversary, threat, params: see ``MTARDRecipe``.
    """

    auxiliary: AuxiliaryNetwork

    def __init__(
        self, clean: Teacher, robust: ClassifierTarget, adversary: Adversary, threat: ThreatModel, params: CIARDParams
    ) -> None:
        super().__init__(clean, Teacher(robust), adversary, threat, params)
        rule = sgd(robust.module.parameters(), params.teacher_lr, TEACHER_MOMENTUM, TEACHER_WEIGHT_DECAY)
        self.retrained, self.auxiliary = robust, AuxiliaryNetwork(robust.module, params.teacher_lr, rule)

    def start_epoch(self, epoch: int, decay: float) -> None:
        """The teacher's rate: 0 at first, then a cosine."""
        super().start_epoch(epoch, decay)
        p, first = self.params, round(self.params.teacher_from * self.params.epochs)
        past = (epoch - first) / max(p.epochs - first, 1)
        self.auxiliary.lr = p.teacher_lr * 0.5 * (1 + math.cos(math.pi * past)) if epoch >= first else 0.0

    def inner(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, ...]:
        """x~, T_nat(x), T_adv(x~) and T_nat(x~); one pass of T_adv serves the student's training and a step of its own."""
        x_adv = self.adversary(target, batch)
        if self.auxiliary.lr:
            z_adv = self.retrained(x_adv)
            self.auxiliary.minimise(F.cross_entropy(z_adv, batch.y), batch.all_reduce)
        else:
            z_adv = self.robust(x_adv)
        return x_adv, self.clean.clean(batch), z_adv.detach(), self.clean(x_adv)

    def outer(self, target: ClassifierTarget, batch: Minibatch, inner: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """B-MTARD's loss minus the scaled push away from the clean teacher's mistakes."""
        x_adv, z_nat, z_adv, z_nat_adv = inner
        s_adv, s_nat = target(x_adv), target(batch.x)
        loss, measured = self.balanced(z_nat, s_nat, z_adv, s_adv)
        push = push_away(z_nat_adv, s_adv, batch.y, self.params.push_temperature)
        scale = push_scale(push, measured["loss_nat"], measured["loss_adv"])
        return loss - scale * push, measured | {"loss_push": scale * push}


class CIARD(MTARD):
    """A student of a clean teacher, a robust one that is trained along, and the clean one's mistakes."""

    Params = CIARDParams
    source = "Lu et al. 2025, arXiv:2509.12633"

    def fit(self, context: FitContext) -> Target:
        """Distil; the epoch is chosen as ``selection`` says. The campaign's robust teacher is left as found."""
        p = self.params
        adversary = Adversary.under(p.inner, context.threat)
        robust = teacher(context, p.teachers.robust)
        own = ClassifierTarget(
            copy.deepcopy(robust.module).eval().requires_grad_(),
            num_classes=robust.num_classes,
            input_shape=robust.input_shape,
            bounds=robust.bounds,
        )
        with frozen_teacher(context, p.teachers.clean, p) as clean:
            student = fresh_network(context, p.student, p.student_params)
            return train(context, student, CIARDRecipe(clean, own, adversary, context.threat, p), p)
