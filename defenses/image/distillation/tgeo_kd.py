"""TGeo-KD: a small network gives each sample its own weight of teacher and label, from how far the three lie apart.

    lower level:  min_S  mean_i [ a_i * tau^2 * KL(T || S)(x_i; tau) + (1 - a_i) * CE(S(x_i), y_i) ]
    upper level:  min_g  CE of S' on validation data,    S' = S after one step of plain gradient descent on the lower loss

    a_i = g( S, T, y, T_y,  |S - y|, |T - y|, |S - T|, |S - T_y|, |T_y - y| )

with the probabilities of student and teacher, the label as a unit vector, and T_y the teacher's mean over the label's class: two
triangles, of the sample and of its class, by corners and sides. g is a perceptron that ends in a sigmoid; its inputs are
constants, so that a_i moves by the upper level alone. (The authors' code never trains g.) The upper level's validation data also
choose the epoch.

Good where the teacher errs on some classes. It needs validation data and two more passes a step; no adversarial example is
seen, so none is withstood.

Source: Hu et al.: Less or more from teacher: exploiting trilateral geometry for knowledge distillation (ICLR 2024), equations 3 to 5.
The temperature and the width of g are ours: the authors' code has tau 1.5 and two hidden layers of 32 and 16 units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import FitContext
from robustkd.defenses.training import Distillation, DistillationRecipe, Minibatch, Prepared, StudentParams, Teacher, kl
from robustkd.defenses.training.auxiliary import AuxiliaryNetwork
from robustkd.defenses.training.batches import Samples
from robustkd.defenses.training.networks import seeded_init
from robustkd.defenses.training.optim import base_lr
from robustkd.lazy import F, nn, torch
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 500
SIDES = 5


class TGeoKDParams(StudentParams):
    temperature: float = Field(4.0, gt=0, description="tau, of teacher and student")
    width: int = Field(64, ge=1, description="hidden units of g")
    ratio_lr: float = Field(1e-3, gt=0, description="learning rate of g (Adam)")
    every: int = Field(1, ge=1, description="steps of the student for each step of g")
    upper_batch: int = Field(128, ge=1, description="validation samples of a step of g")


def geometry(student: Tensor, teacher: Tensor, labels: Tensor, means: Tensor) -> Tensor:
    """(B, 4 K + 5) corners and sides, of (B, K) logits and the (K, K) table of T_y."""
    s, t, mean = student.float().softmax(1), teacher.float().softmax(1), means[labels]
    truth = F.one_hot(labels, s.shape[1]).to(s.dtype)
    sides = [(a - b).norm(dim=1) for a, b in ((s, truth), (t, truth), (s, t), (s, mean), (mean, truth))]
    return torch.cat([s, t, truth, mean, torch.stack(sides, 1)], 1)


def class_means(teacher: Teacher, samples: Samples, num_classes: int) -> Tensor:
    """(K, K) mean probabilities of the teacher over each class of the training images."""
    totals = torch.zeros(num_classes, num_classes, device=samples.device)
    for rows in torch.arange(len(samples)).split(_BATCH):
        x, y = samples.take(rows)
        totals.index_add_(0, y, teacher(x).float().softmax(1))
    return totals / totals.sum(1, keepdim=True).clamp_min(1)


class TGeoKDRecipe(DistillationRecipe):
    """The two levels.

    Args:
        teacher, params: see ``DistillationRecipe``.
        ratio: g.
        means: (K, K) T_y.
        upper: validation samples.
    """

    state = ("done",)

    def __init__(self, teacher: Teacher, params: TGeoKDParams, ratio: AuxiliaryNetwork, means: Tensor, upper: Samples) -> None:
        super().__init__(teacher, params)
        self.ratio = self.auxiliary = ratio
        self.means, self.upper = means, upper
        self.done = 0
        self._rate = base_lr(params)

    def start_epoch(self, epoch: int, decay: float) -> None:
        """The lower level's step follows the learning rate."""
        self._rate = base_lr(self.params) * decay

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """A step of the upper level, then the lower level's loss."""
        teacher = self.teacher.clean(batch)
        if self.done % self.params.every == 0:
            self.ratio.minimise(self.upper_loss(target, batch, teacher), batch.all_reduce)
        student = target(batch.x)
        with torch.no_grad():
            share = self.share(student, teacher, batch.y)
        return self.lower_loss(student, teacher, batch.y, share), {"teacher_share": share.mean()}

    def share(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """(B,) the teacher's share a_i in each sample's loss."""
        return self.ratio(geometry(student.detach(), teacher, labels, self.means)).squeeze(1).sigmoid()

    def lower_loss(self, student: Tensor, teacher: Tensor, labels: Tensor, share: Tensor) -> Tensor:
        """mean a_i tau^2 KL + (1 - a_i) CE."""
        tau = self.params.temperature
        soft = kl(teacher, student, teacher_temperature=tau, student_temperature=tau, reduction="none")
        return (share * tau**2 * soft + (1 - share) * F.cross_entropy(student, labels, reduction="none")).mean()

    def upper_loss(self, target: ClassifierTarget, batch: Minibatch, teacher: Tensor) -> Tensor:
        """CE of the student after a step of the lower level, as a function of g."""
        # Copies of the buffers: these passes leave no trace in BatchNorm's statistics.
        buffers = {name: buffer.clone() for name, buffer in target.module.named_buffers()}
        weights = {name: w for name, w in target.module.named_parameters() if w.requires_grad}
        student = torch.func.functional_call(target.module, weights | buffers, (batch.x,))
        lower = self.lower_loss(student, teacher, batch.y, self.share(student, teacher, batch.y))
        gradients = torch.autograd.grad(lower, list(weights.values()), create_graph=True)
        moved = {name: w - self._rate * g for (name, w), g in zip(weights.items(), gradients, strict=True)}
        x, y = self.upper.take(self._upper_rows(batch))
        return F.cross_entropy(torch.func.functional_call(target.module, moved | buffers, (x,)), y)

    def _upper_rows(self, batch: Minibatch) -> Tensor:
        """The next of the validation samples, round and round."""
        first = self.done // self.params.every * self.params.upper_batch
        return torch.arange(first, first + min(self.params.upper_batch, len(self.upper))) % len(self.upper)

    def after_step(self, metrics: Mapping[str, float]) -> None:
        """Count the step, on which the turn of the upper level depends."""
        self.done += 1


class TGeoKD(Distillation):
    """A student that is told by a third network whom to believe."""

    Params = TGeoKDParams
    recipe = TGeoKDRecipe
    source = "Hu et al. 2024, arXiv:2312.15112"

    def prepare(self, context: FitContext, teacher: Teacher, student: ClassifierTarget) -> Prepared:
        """Make g, and measure the teacher's class means."""
        p, classes = self.params, context.num_classes
        with seeded_init(context, "ratio"):
            layers = (nn.Linear(4 * classes + SIDES, p.width), nn.ReLU(), nn.Linear(p.width, 1))
            ratio = AuxiliaryNetwork(nn.Sequential(*layers).to(context.device), p.ratio_lr)
        means = class_means(teacher, Samples(context.train, context.device), classes)
        return TGeoKDRecipe(teacher, p, ratio, means, Samples(context.validation, context.device)), student
