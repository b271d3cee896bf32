"""SAAD: sample-wise adaptive adversarial distillation. The student learns most where the teacher is unsure of x~.

    x~ = argmax_{x' in ball(x)} KL(T~(x') || S(x'))     from x + 0.001 * N(0, 1); T~ is T(x) with the label's logit made linear at x
    w  = scale * (H(T(x~)) - min over the batch of H),   w_n = w brought to [0, 1] over the batch
    min_S  mean of w * (KL(T(x~) || S(x~)) + IGDM) + beta * (1 - w_n) * KL(T(x) || S(x)),   scale = 5

An example whose x~ the teacher is sure of does not transfer to it, and weighs least. T~ needs one gradient of the teacher a minibatch,
where AdaAD takes ten. IGDM is the term of gradient_matching.py; ``igdm: null`` leaves it out. With ``adaptive: false`` every w is
1, the control: what is left is AdaAD on T~, with IGDM.

Good where the teacher is much larger than the student and trained on more data: the paper's are WideResNets of RobustBench.

Source: Lee, Chung: Sample-wise adaptive weighting for transfer consistency in adversarial distillation (TMLR 2026,
arXiv:2512.10275); saad.py and attacks.py of github.com/HongsinLee/saad were read. The step size, SWA over the last 105 of 200 epochs and
beta = 0 on CIFAR-10 are that code's; it measures nothing while it trains, and deploys the average.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from robustkd.contracts import ThreatModel
from robustkd.defenses.training import (
    Adversary,
    Minibatch,
    RobustDistillation,
    RobustDistillationParams,
    Teacher,
    TeacherInner,
    TeacherRecipe,
    entropy,
    kl,
)
from robustkd.defenses.training.adversarial import IGDM
from robustkd.defenses.training.divergence import scaled
from robustkd.defenses.training.gradient_matching import GradientMatchingParams
from robustkd.defenses.training.inner import InnerLoss, StartParam
from robustkd.defenses.training.params import WeightDecayParam
from robustkd.lazy import torch
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class SAADInner(TeacherInner):
    """The inner maximisation with the paper's loss and start."""

    start: StartParam = "noise"
    loss: InnerLoss = Field("kl-teacher-linear", description="what is climbed: cross entropy, or a divergence of outputs")


class SAADParams(RobustDistillationParams):
    """Parameters of ``saad``. The paper trains on CIFAR with ``augment: crop-flip``."""

    weight_decay: WeightDecayParam = 2e-4
    inner: SAADInner = Field(default_factory=SAADInner, description="the examples of the adversarial branch")
    igdm: GradientMatchingParams | None = Field(default_factory=GradientMatchingParams, description=IGDM)
    swa: float | None = Field(
        94 / 200, ge=0, lt=1, description="deploy the mean of the weights after each epoch, from this share of the epochs on"
    )
    adaptive: bool = Field(True, description="weigh each sample by the teacher's entropy on x~; else all alike")
    scale: float = Field(5.0, gt=0, description="of the weights")
    beta: float = Field(0.0, ge=0, description="weight of the clean branch on the samples that weigh least")


def sample_weights(teacher_logits: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(B,) w and (B,) w_n of the adversarial and the clean branch, from (B, K) logits of the teacher on x~."""
    unsure = entropy(teacher_logits)
    above = unsure - unsure.min()
    return scale * above, above / above.max().clamp_min(1e-8)


class SAADRecipe(TeacherRecipe):
    """Divergence from the teacher on x~, where that one is unsure, and on x, where it is sure."""

    def __init__(self, teacher: Teacher, adversary: Adversary, threat: ThreatModel, params: Any) -> None:
        super().__init__(teacher, adversary, threat, params)
        self.matching, self.gradient_matching = self.gradient_matching, None  # it has a part in the weighted sum

    def inner(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, ...]:
        """x~, T(x~) and T(x)."""
        x_adv = self.adversary(target, batch, self.teacher)
        return x_adv, self.teacher(x_adv), self.teacher.clean(batch)

    def outer(self, target: ClassifierTarget, batch: Minibatch, inner: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean of w * (KL(T(x~) || S(x~)) + IGDM) + beta * (1 - w_n) * KL(T(x) || S(x))."""
        x_adv, soft, clean = inner
        p = self.params
        adversarial = kl(soft, target(x_adv), reduction="none")
        if self.matching is not None:
            adversarial = adversarial + self.matching(target, batch, x_adv)
        # Also where beta is 0, as in the authors' code: BatchNorm's statistics take in the clean images last.
        natural = kl(clean, target(batch.x), reduction="none")
        weight, share = sample_weights(soft, p.scale) if p.adaptive else (torch.ones_like(natural), torch.zeros_like(natural))
        losses = {"loss_adv": (weight * adversarial).mean(), "loss_nat": (p.beta * (1 - share) * natural).mean()}
        losses = {name: scaled(loss, target.num_classes, p.kl_reduction) for name, loss in losses.items()}
        return losses["loss_adv"] + losses["loss_nat"], losses


class SAAD(RobustDistillation):
    """A student that learns most where its teacher is unsure of the adversarial example."""

    Params = SAADParams
    recipe = SAADRecipe
    source = "Lee and Chung 2026 (TMLR), arXiv:2512.10275"
