"""OFA-KD: one for all. Intermediate features speak the language that every architecture shares: logits.

    min_S  CE(S(x), y) + w * L(S(x)) + v * sum_l L(head_l(features_l(x)))

    L(z) = - sum_c ( (p_T + onehot(y))^g - onehot(y) )_c * log softmax(z)_c

With g = 1, L is the cross entropy with the teacher's probabilities; g > 1 raises the label's share of them. Each head is trained
along and not deployed: features are averaged over the image and go through two linear layers (the paper's heads depend on the
architecture). The features are the inputs of activation functions, of so many of these, spread evenly, as ``stages`` says.

Good between architectures that share no features, such as a transformer and a CNN. No adversarial example is seen, so none
is withstood.

Source: Hao et al.: One-for-all: bridge the gap between heterogeneous architectures in knowledge distillation (NeurIPS 2023),
equation 6. The weights are those of the authors' code; g is its value for ImageNet (its default is 1), and its label smoothing
of 0.1 is not applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from robustkd.contracts import FitContext
from robustkd.defenses.training import Distillation, DistillationRecipe, Minibatch, Prepared, StudentParams, Teacher
from robustkd.defenses.training.auxiliary import with_auxiliary
from robustkd.defenses.training.features import with_activations
from robustkd.defenses.training.networks import seeded_init
from robustkd.lazy import F, nn, torch
from robustkd.targets import ClassifierTarget, frozen

if TYPE_CHECKING:
    from torch import Tensor


class OFAKDParams(StudentParams):
    """Parameters of ``ofa-kd``. The paper trains on CIFAR-100 with ``augment: crop-flip`` and more."""

    enhancement: float = Field(1.5, gt=0, description="g, the exponent on the label's share; the authors take 1 to 1.5")
    weight: float = Field(1.0, ge=0, description="w, of the loss at the logits")
    heads_weight: float = Field(1.0, ge=0, description="v, of the loss at each head")
    stages: int = Field(4, ge=1, description="heads at most")
    width: int = Field(64, ge=1, description="hidden units of each head")


def enhanced(logits: Tensor, teacher: Tensor, labels: Tensor, exponent: float) -> Tensor:
    """L, the mean over (B, K) logits."""
    label = F.one_hot(labels, logits.shape[1])
    weights = (teacher.float().softmax(1) + label) ** exponent - label
    return -(weights * logits.float().log_softmax(1)).sum(1).mean()


def pooled(features: Tensor) -> Tensor:
    """(B, D) means over the positions of (B, D, H, W) maps or (B, N, D) tokens; vectors stay as they are."""
    if features.ndim == 4:
        return features.mean((2, 3))
    return features.mean(1) if features.ndim == 3 else features


def spread(count: int, wanted: int) -> list[int]:
    """At most so many of the numbers below ``count``, evenly, the last among them."""
    wanted = min(wanted, count)
    return [round((step + 1) * count / wanted) - 1 for step in range(wanted)]


class OFAKDRecipe(DistillationRecipe):
    """The loss at the logits and at each head.

    Args:
        teacher, params: see ``DistillationRecipe``.
        student: the network inside the trained module.
        stages: of which activation functions the inputs are taken.
    """

    def __init__(self, teacher: Teacher, params: OFAKDParams, student: ClassifierTarget, stages: Sequence[int]) -> None:
        super().__init__(teacher, params)
        self.student, self.stages = student, stages

    def loss(self, target: Any, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """CE + w L + v sum L(head)."""
        p, teacher = self.params, self.teacher.clean(batch)
        logits, features = with_activations(self.student, batch.x)
        heads = target.module.parts["heads"]
        spoken = [head(pooled(features[stage])) for head, stage in zip(heads, self.stages, strict=True)]
        loss_heads = torch.stack([enhanced(z, teacher, batch.y, p.enhancement) for z in spoken]).sum()
        loss_soft = enhanced(logits, teacher, batch.y, p.enhancement)
        loss = F.cross_entropy(logits, batch.y) + p.weight * loss_soft + p.heads_weight * loss_heads
        return loss, {"loss_soft": loss_soft, "loss_heads": loss_heads}


class OFAKD(Distillation):
    """A student that is taught at several depths."""

    Params = OFAKDParams
    recipe = OFAKDRecipe
    source = "Hao et al. 2023, arXiv:2310.19444"

    def prepare(self, context: FitContext, teacher: Teacher, student: ClassifierTarget) -> Prepared:
        """Put a head on each of the student's stages."""
        p = self.params
        with frozen(student.module), torch.no_grad():
            _, features = with_activations(student, torch.zeros(2, *context.input_shape))
        stages = spread(len(features), p.stages)
        with seeded_init(context, "heads"):
            heads = nn.ModuleList(
                nn.Sequential(
                    nn.Linear(pooled(features[stage]).shape[1], p.width), nn.ReLU(), nn.Linear(p.width, context.num_classes)
                )
                for stage in stages
            )
        return OFAKDRecipe(teacher, p, student, stages), with_auxiliary(student, heads=heads)
