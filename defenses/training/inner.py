"""The inner maximisation of adversarial training: the highest loss in the ball, by PGD on the current weights.

    x_0   = a point near x
    x_t+1 = project(x_t + size * steepest(grad_x loss(x_t)))

where ``loss`` is one of

    ce                  CE(S(x'), y)            Madry et al., ARD, IAD, MTARD
    kl-student-clean    KL(S(x) || S(x'))       TRADES
    kl-teacher-clean    KL(T(x) || S(x'))       RSLAD; T(x) is a constant
    kl-teacher-adv      KL(T(x') || S(x'))      AdaAD; the gradient goes through the teacher as well
    kl-teacher-linear   KL(T~(x') || S(x'))     SAAD; T~ is T(x) with the label's logit moved along its gradient at x

It is the attack engine's loop (exactly ``steps`` passes each way, gradients of the input alone), with the network in evaluation
mode, as TRADES and MTARD have it: BatchNorm uses the statistics it will be deployed with and does not learn from unfinished
examples, dropout is off. (Rice et al., ARD and IAD attack in train mode.)

Source: Madry et al.: Towards deep learning models resistant to adversarial attacks (ICLR 2018), equation 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from robustkd.attacks.image.engine.ascent import SteepestStep, last_iterate
from robustkd.attacks.image.engine.ball import Ball, StepSize
from robustkd.attacks.image.engine.objective import bound
from robustkd.attacks.image.engine.oracle import Objective, Oracle, frozen
from robustkd.attacks.image.gradient.pgd import PGD
from robustkd.contracts import Batch, Params, Target, ThreatModel, UsageError
from robustkd.defenses.training.batches import Minibatch
from robustkd.defenses.training.divergence import kl
from robustkd.defenses.training.teachers import Teacher
from robustkd.lazy import F, nn, torch
from robustkd.targets import ClassifierTarget, ImageTarget

if TYPE_CHECKING:
    from torch import Tensor

Start = Literal["uniform", "noise", "clean"]
StartParam: TypeAlias = Annotated[
    Start, Field(description="a uniform point of the ball, x plus noise 0.001 * N(0, 1), or x itself")
]
NOISE = 0.001
"""Deviation of the ``noise`` start, in pixel units: the value of TRADES and MTARD."""

OwnLoss = Literal["ce", "kl-student-clean"]
InnerLoss = Literal["ce", "kl-student-clean", "kl-teacher-clean", "kl-teacher-adv", "kl-teacher-linear"]


class InnerSteps(Params):
    """The steps by which the examples to train on are made; the norm is the campaign's.

    Attributes:
        step_share: the default step as a share of eps.
    """

    step_share: ClassVar[float] = 1 / 4

    kind: Literal["pgd"] = Field("pgd", description="projected gradient ascent of the loss")
    steps: int = Field(10, ge=1, description="steps for each example")
    eps: float | None = Field(None, gt=0, description="radius in pixel units; default the campaign's")
    step_size: float | None = Field(None, gt=0, description="in pixel units; default eps / 4")
    start: StartParam = "uniform"

    def under(self, threat: ThreatModel) -> ThreatModel:
        """What is trained against in a campaign with this threat model."""
        return ThreatModel(norm=threat.norm, eps=self.eps if self.eps is not None else threat.eps)

    def refusal(self, threat: ThreatModel) -> str | None:
        """Why examples of that kind cannot be made by projected gradient ascent, None where they can."""
        reason = PGD().refusal(self.under(threat))
        return None if reason is None else f"is trained with PGD, which {reason}"


class TeacherInner(InnerSteps):
    """How the examples to train on are made, and what is climbed."""

    loss: InnerLoss = Field("ce", description="what is climbed: cross entropy, or a divergence of student and teacher outputs")

    @model_validator(mode="after")
    def _has_a_slope(self) -> TeacherInner:
        if self.loss == "kl-student-clean" and self.start == "clean":
            raise ValueError("KL(S(x) || S(x')) has no gradient at x' = x: use start: noise or uniform")
        return self


class InnerMaximisation(TeacherInner):
    """The inner maximisation of a defense without a teacher."""

    loss: OwnLoss = Field("ce", description="what is climbed: cross entropy, or the divergence from the output on x")


@dataclass(frozen=True)
class Adversary:
    """The inner maximisation with everything decided.

    Attributes:
        threat: norm and radius.
        steps, step_size, start, loss: see ``TeacherInner``.
    """

    threat: ThreatModel
    steps: int
    step_size: float
    start: Start
    loss: InnerLoss = "ce"

    @classmethod
    def under(cls, inner: InnerSteps, threat: ThreatModel) -> Adversary:
        """What ``inner`` means under the campaign's threat model.

        Raises:
            UsageError: examples of that kind cannot be made by projected gradient ascent.
        """
        trained_against = inner.under(threat)
        if (reason := inner.refusal(threat)) is not None:
            fix = f"use a threat model in pixels with one of the norms {', '.join(PGD.norms)}"
            raise UsageError(f"the defense {reason}", fix=fix)
        step_size = inner.step_size if inner.step_size is not None else inner.step_share * trained_against.eps
        loss = inner.loss if isinstance(inner, TeacherInner) else "ce"
        return cls(trained_against, inner.steps, step_size, inner.start, loss)

    def __call__(self, target: ImageTarget, batch: Minibatch, teacher: Teacher | None = None) -> Tensor:
        """x~ (B, C, H, W) inside the ball and the pixel range; the target is left as found and no weight gets a gradient.

        Args:
            target: S.
            batch: x and y.
            teacher: T, where the loss asks for one.
        """
        with frozen(target.module):
            return self.climb(batch, *self._objective(target, batch, teacher))

    def climb(self, batch: Minibatch, climbed: Target, objective: Objective) -> Tensor:
        """The same for an objective of the caller's own, inside ``frozen(target.module)``; ``loss`` is not looked at.

        Args:
            batch: x.
            climbed: what is climbed, as a function of images.
            objective: its outputs and their rows in the batch -> values.
        """
        samples = Batch(batch.x, batch.y, batch.index)
        ball = Ball.around(batch.x, self.threat.eps, self.threat.norm, climbed.bounds)
        return last_iterate(
            Oracle(climbed, samples),
            torch.arange(len(samples), device=batch.x.device),
            ball,
            self._start(ball, batch),
            objective=objective,
            update=SteepestStep(StepSize(self.step_size)),
            steps=self.steps,
        )

    def _objective(self, target: ImageTarget, batch: Minibatch, teacher: Teacher | None) -> tuple[ImageTarget, Objective]:
        """What is climbed, and the network that it is a function of."""
        if self.loss == "ce":
            return target, bound(_cross_entropy, batch.goal)
        if self.loss == "kl-student-clean":
            with torch.no_grad():
                return target, _divergence_from(target(batch.x))
        assert teacher is not None  # Params without a teacher have no other loss
        if self.loss == "kl-teacher-clean":
            return target, _divergence_from(teacher.clean(batch))
        beside = teacher.target.module if self.loss == "kl-teacher-adv" else _linearised(teacher, batch)
        return _side_by_side(beside, target), _divergence_of_halves

    def _start(self, ball: Ball, batch: Minibatch) -> Tensor:
        if self.start == "clean":
            return batch.x
        rng = batch.rng("inner")
        if self.start == "uniform":
            return ball.random_point(rng)
        # The projection only matters for an eps of the size of the noise, and for pixels at the end of their range.
        return ball.project(batch.x + NOISE * rng.normal(batch.x.shape[1:], dtype=batch.x.dtype))


def _divergence_from(fixed: Tensor) -> Objective:
    def objective(logits: Tensor, rows: Tensor) -> Tensor:
        return kl(fixed[rows], logits, reduction="none")

    return objective


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """In torch's fused form: a network in training is not as sure as those for which an attack's form is made."""
    return F.cross_entropy(logits, labels, reduction="none")


def _divergence_of_halves(logits: Tensor, rows: Tensor) -> Tensor:
    moving_teacher, student = logits.chunk(2, dim=1)
    return kl(moving_teacher, student, reduction="none")


def _linearised(teacher: Teacher, batch: Minibatch) -> nn.Module:
    """The teacher with the logit of each sample's label as it is to first order around x, the others as they are at x."""
    from robustkd.defenses.training.modules import LinearInOneLogit  # late: it imports torch

    x = batch.x.detach().requires_grad_()
    with torch.enable_grad():
        logits = teacher.target(x)
        (gradient,) = torch.autograd.grad(logits.gather(1, batch.y[:, None]).sum(), x)
    return LinearInOneLogit(batch.x, logits.detach(), gradient, batch.y)


def _side_by_side(first: nn.Module, second: ImageTarget) -> ClassifierTarget:
    from robustkd.defenses.training.modules import SideBySide  # late: it imports torch

    module = SideBySide(first, second.module)
    return ClassifierTarget(module, num_classes=2 * second.num_classes, input_shape=second.input_shape, bounds=second.bounds)
