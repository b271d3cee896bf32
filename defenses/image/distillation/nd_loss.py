"""ND loss (KD++): the student's features are to be long, and to point where the teacher's features of the class point.

    min_S  CE(S(x), y) + a * tau^2 * KL(T(x; tau) || S(x; tau)) + b * mean_i ( 1 - <s_i, e_y> / max(||s_i||, ||t_i||) )

s_i and t_i are what the last linear layers of student and teacher are given; e_y is the direction of the mean of t over the training
images of class y (not augmented). Where the lengths of the features differ, s_i is projected linearly; the projection is trained
along and not deployed.

Good for clean accuracy between networks of one family. Longer features mean larger logits, which an attack on the cross
entropy may take for robustness: attack the margin.

Source: Wang et al.: Improving knowledge distillation via regularizing feature norm and direction (2023), equation 8; weights are those
of the authors' code for ResNet-56 to ResNet-20, which also raises the weight of the KL over the first 20 of its 240 epochs and trains
with Nesterov momentum: that is not done here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from robustkd.contracts import FitContext, Target
from robustkd.defenses.training import Distillation, DistillationRecipe, Minibatch, Prepared, StudentParams, Teacher, kl
from robustkd.defenses.training.auxiliary import with_auxiliary
from robustkd.defenses.training.batches import Samples
from robustkd.defenses.training.networks import seeded_init
from robustkd.lazy import F, nn, torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import last_linear, with_penultimate

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 500


class NDLossParams(StudentParams):
    """Parameters of ``nd-loss``. The paper trains on CIFAR with ``augment: crop-flip``."""

    temperature: float = Field(4.0, gt=0, description="tau, of teacher and student")
    alpha: float = Field(1.0, ge=0, description="a, weight of the divergence")
    beta: float = Field(2.0, ge=0, description="b, weight of the norm and direction loss")


def norm_and_direction(student: Tensor, teacher: Tensor, directions: Tensor) -> Tensor:
    """(B,) 1 - <s, e> / max(||s||, ||t||), of (B, D) features and (B, D) unit vectors."""
    longest = torch.maximum(student.norm(dim=1), teacher.norm(dim=1))
    return 1 - (student * directions).sum(1) / longest.clamp_min(1e-12)


def class_directions(teacher: Target, context: FitContext) -> Tensor:
    """(K, D) unit vectors along the classes' mean features; zeros for a class without images."""
    samples = Samples(context.train, context.device)
    totals = torch.zeros(context.num_classes, last_linear(teacher.module).in_features, device=context.device)
    with torch.no_grad():
        for rows in torch.arange(len(samples)).split(_BATCH):
            x, y = samples.take(rows)
            totals.index_add_(0, y, with_penultimate(teacher, x)[1].float())
    return F.normalize(totals, dim=1)


class NDLossRecipe(DistillationRecipe):
    """Cross entropy, divergence, norm and direction.

    Args:
        teacher, params: see ``DistillationRecipe``.
        student: the network inside the trained module.
        directions: (K, D) e.
    """

    def __init__(self, teacher: Teacher, params: NDLossParams, student: ClassifierTarget, directions: Tensor) -> None:
        super().__init__(teacher, params)
        self.student, self.directions = student, directions

    def loss(self, target: Any, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """CE + a tau^2 KL + b ND."""
        p, tau = self.params, self.params.temperature
        with torch.no_grad():
            z_t, t = with_penultimate(self.teacher.target, batch.x)
        z_s, s = with_penultimate(self.student, batch.x)
        s = target.module.parts["projection"](s)
        soft = kl(z_t, z_s, teacher_temperature=tau, student_temperature=tau, reduction="batch")
        features = norm_and_direction(s.float(), t.float(), self.directions[batch.y]).mean()
        loss = F.cross_entropy(z_s, batch.y) + p.alpha * tau**2 * soft + p.beta * features
        return loss, {"loss_soft": soft, "loss_features": features}


class NDLoss(Distillation):
    """A student with long features in its teacher's directions."""

    Params = NDLossParams
    recipe = NDLossRecipe
    source = "Wang et al. 2023, arXiv:2305.17007"

    def prepare(self, context: FitContext, teacher: Teacher, student: ClassifierTarget) -> Prepared:
        """Measure the teacher's directions; where its features are of another width, a projection is trained as well."""
        ours, theirs = last_linear(student.module).in_features, last_linear(teacher.target.module).in_features
        with seeded_init(context, "projection"):
            projection = nn.Identity() if ours == theirs else nn.Linear(ours, theirs, bias=False)
        recipe = NDLossRecipe(teacher, self.params, student, class_directions(teacher.target, context))
        return recipe, with_auxiliary(student, projection=projection)
