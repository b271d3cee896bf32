"""MTARD: multi-teacher adversarial robustness distillation, in its conference and its journal form (B-MTARD).

A student S learns from two frozen teachers, T_nat on clean and T_adv on adversarial images, without hard labels:

    x~ = argmax_{x' in ball(x)} CE(S(x'), y)                                    PGD-10 from x + 0.001 * N(0, 1)
    L_nat = KL(T_nat(x; tau_nat) || S(x)),   L_adv = KL(T_adv(x~; tau_adv) || S(x~))
    min_S  w_nat * L_nat + w_adv * L_adv,    w_nat + w_adv = 1

after each step, both balances move by what it showed:

    loss balance:     w_nat <- w_nat - r_w * (w_nat - l_nat^beta / (l_nat^beta + l_adv^beta)),   l_k = L_k / L_k(0)
    entropy balance:  tau_adv <- clip(tau_adv - r_tau * sign(H_adv / H_nat - 1)), tau_nat the other way;   journal only

Good where clean accuracy counts as well. Against AutoAttack it is less robust than ``rslad`` with the same robust teacher
(5.2 to 6.8 points in ``robust-distillation-small``): the clean teacher's part is paid for.

Sources: Zhao et al.: Enhanced accuracy and robustness via multi-teacher adversarial distillation (ECCV 2022);
Zhao, Wang, Wei: Mitigating accuracy-robustness trade-off via balanced multi-teacher adversarial distillation (TPAMI 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from robustkd.contracts import FitContext, ModelName, Params, Target, TargetRef, ThreatModel
from robustkd.contracts.params import AddedLater, ModelParams
from robustkd.defenses.training import (
    AdversarialRecipe,
    Adversary,
    AWPParams,
    InnerMaximisation,
    Minibatch,
    Teacher,
    TrainedUnderAttack,
    TrainParams,
    entropy,
    fresh_network,
    frozen_teacher,
    kl,
    train,
)
from robustkd.defenses.training.adversarial import IGDM
from robustkd.defenses.training.gradient_matching import GradientMatchingParams
from robustkd.defenses.training.inner import StartParam
from robustkd.defenses.training.params import EpochsParam, WeightDecayParam
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1.0, 10.0


class MTARDTeachers(Params):
    """The names of the clean teacher and of the robust one."""

    clean: TargetRef = Field(description="T_nat, a defense trained for clean accuracy")
    robust: TargetRef = Field(description="T_adv, a defense trained for robustness")


class MTARDInner(InnerMaximisation):
    """The inner maximisation with the paper's start."""

    start: StartParam = "noise"


class MTARDParams(TrainParams):
    """Parameters of ``mtard``. The papers train on CIFAR with ``augment: crop-flip``."""

    milestone_fractions: ClassVar[tuple[float, ...]] = (215 / 300, 260 / 300, 285 / 300)

    epochs: EpochsParam = 300
    weight_decay: WeightDecayParam = 2e-4
    teachers: MTARDTeachers = Field(description="the two that the student learns from")
    student: ModelName = Field(description="the student's architecture: a model plug-in")
    student_params: ModelParams = Field(default_factory=dict)
    inner: MTARDInner = Field(default_factory=MTARDInner, description="the examples of the adversarial branch")
    awp: AWPParams | None = Field(None, description="adversarial weight perturbation: {} turns it on")
    igdm: Annotated[GradientMatchingParams | None, AddedLater()] = Field(None, description=IGDM)
    form: Literal["conference", "journal"] = Field("conference", description="journal also balances the teachers' temperatures")
    balance_loss: bool = Field(True, description="let the weights follow the relative losses, else 1/2 each")
    weight_rate: float = Field(0.025, gt=0, lt=1, description="r_w; it falls with the learning rate")
    beta: float = Field(1.0, gt=0, description="exponent of the relative losses")
    temperature_rate: float = Field(0.001, gt=0, description="r_tau of the journal form; it falls with the learning rate")
    reference_steps: int = Field(
        10, ge=1, description="L_k(0) is the mean loss of so many first steps; 1 is the papers' and hangs on one minibatch"
    )
    kl_reduction: Literal["batch", "batch-and-class", "tenth"] = Field(
        "tenth",
        description="tenth, the authors': KL / 10 on CIFAR-10 and CIFAR-100, which the papers' learning rate for sgd belongs to; "
        "batch-and-class: KL / K; batch, the definition: ten times as large, to be used with a smaller lr",
    )


def balanced_weight(weight: float, relative: float, opposite: float, *, rate: float, beta: float = 1.0) -> float:
    """w <- w - r_w * (w - l^beta / (l^beta + l_opposite^beta)): the branch that has fallen less gains weight.

    The journal form updates both weights by this rule, floors them at 0 and renormalises. The rule is a convex combination
    and keeps their sum, so one update and ``w_adv = 1 - w_nat`` is the same thing.
    """
    total = relative**beta + opposite**beta
    share = relative**beta / total if total > 0 else 0.5
    return weight - rate * (weight - share)


def balanced_temperatures(
    tau_nat: float, tau_adv: float, entropy_nat: float, entropy_adv: float, *, rate: float
) -> tuple[float, float]:
    """tau_k <- clip(tau_k - r_tau * sign(H_k / H_other - 1), 1, 10): the softer teacher is sharpened, the other softened."""
    softer = (entropy_adv > entropy_nat) - (entropy_adv < entropy_nat)
    return _clipped(tau_nat + rate * softer), _clipped(tau_adv - rate * softer)


def _clipped(temperature: float) -> float:
    return min(max(temperature, LOWEST_TEMPERATURE), HIGHEST_TEMPERATURE)


class MTARDRecipe(AdversarialRecipe):
    """The two losses and what the balances have learnt.

    The student sees x~ and x in two forward passes, as in the papers: its BatchNorm normalises each branch by the branch's own
    statistics, and the running ones that are deployed take in both in turn, x last.

    Attributes:
        w_nat: weight of the clean branch.
        tau_nat, tau_adv: the teachers' temperatures.
        first_nat, first_adv: L_k(0), the mean over the first steps, of which there were ``first_steps``.
    """

    state = ("w_nat", "tau_nat", "tau_adv", "first_nat", "first_adv", "first_steps")

    def __init__(self, clean: Teacher, robust: Teacher, adversary: Adversary, threat: ThreatModel, params: MTARDParams) -> None:
        super().__init__(adversary, threat, params)
        self.clean, self.robust = clean, robust
        self.match_gradients(robust)
        self.w_nat = 0.5
        self.tau_nat = self.tau_adv = LOWEST_TEMPERATURE
        self.first_nat = self.first_adv = 0.0
        self.first_steps = 0
        self._decay = 1.0

    def inner(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, ...]:
        """The adversarial examples x~ and the teachers' logits, T_nat(x) and T_adv(x~)."""
        x_adv = self.adversary(target, batch)
        return x_adv, self.clean.clean(batch), self.robust(x_adv)

    def outer(self, target: ClassifierTarget, batch: Minibatch, inner: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """w_nat * L_nat + w_adv * L_adv, and what the balances need."""
        x_adv, z_nat, z_adv = inner
        s_adv, s_nat = target(x_adv), target(batch.x)
        return self.balanced(z_nat, s_nat, z_adv, s_adv)

    def balanced(self, z_nat: Tensor, s_nat: Tensor, z_adv: Tensor, s_adv: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The same from (B, K) logits of teachers (z) and student (s)."""
        reduction = self.params.kl_reduction
        loss_nat = kl(z_nat, s_nat, teacher_temperature=self.tau_nat, reduction=reduction)
        loss_adv = kl(z_adv, s_adv, teacher_temperature=self.tau_adv, reduction=reduction)
        return self.w_nat * loss_nat + (1 - self.w_nat) * loss_adv, {
            "loss_nat": loss_nat,
            "loss_adv": loss_adv,
            "entropy_nat": entropy(z_nat, self.tau_nat).mean(),
            "entropy_adv": entropy(z_adv, self.tau_adv).mean(),
            "weight_nat": loss_nat.new_tensor(self.w_nat),
            "temperature_nat": loss_nat.new_tensor(self.tau_nat),
            "temperature_adv": loss_nat.new_tensor(self.tau_adv),
        }

    def start_epoch(self, epoch: int, decay: float) -> None:
        """r_w and r_tau fall with the learning rate."""
        self._decay = decay

    def after_step(self, metrics: Mapping[str, float]) -> None:
        """Update the weights and the temperatures by the balances."""
        p, nat, adv = self.params, metrics["loss_nat"], metrics["loss_adv"]
        if self.first_steps < p.reference_steps:
            self.first_steps += 1
            self.first_nat += (nat - self.first_nat) / self.first_steps
            self.first_adv += (adv - self.first_adv) / self.first_steps
        if p.balance_loss:
            # l_nat : l_adv without dividing by a first loss that may be 0 (a student that starts as its teacher).
            relative, opposite = nat * self.first_adv, adv * self.first_nat
            self.w_nat = balanced_weight(self.w_nat, relative, opposite, rate=p.weight_rate * self._decay, beta=p.beta)
        if p.form == "journal":
            self.tau_nat, self.tau_adv = balanced_temperatures(
                self.tau_nat,
                self.tau_adv,
                metrics["entropy_nat"],
                metrics["entropy_adv"],
                rate=p.temperature_rate * self._decay,
            )


class TwoTeacherDistillation(TrainedUnderAttack):
    """A student of a clean and a robust teacher, both frozen.

    Attributes:
        recipe: the outer loss, made of both teachers, the inner maximisation, the threat model and the parameters.
    """

    recipe: ClassVar[Callable[..., AdversarialRecipe]]

    def fit(self, context: FitContext) -> Target:
        """Distil; the epoch is chosen as ``selection`` says."""
        p = self.params
        adversary = Adversary.under(p.inner, context.threat)
        with frozen_teacher(context, p.teachers.clean, p) as clean, frozen_teacher(context, p.teachers.robust, p) as robust:
            student = fresh_network(context, p.student, p.student_params)
            return train(context, student, self.recipe(clean, robust, adversary, context.threat, p), p)


class MTARD(TwoTeacherDistillation):
    """A student of a clean and a robust teacher."""

    Params = MTARDParams
    recipe = MTARDRecipe
    source = "Zhao et al. 2022 (ECCV) and 2024 (TPAMI, arXiv:2306.16170)"
