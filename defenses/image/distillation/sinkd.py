"""SinKD: Sinkhorn distance knowledge distillation. The minibatch's answers are compared as two sets of points.

    min_S  (1 - a) * CE(S(x), y) + a * tau^2 * KL(T(x; tau) || S(x; tau)) + b * SD

    D_ij = || S(x_i; tau) - T(x_j; tau) ||_1                     what it costs to take answer i for answer j
    P    = exp(-D / eps), its rows and columns brought to sum 1 in turn, ``rounds`` times
    SD   = 1/B sum_ij P_ij D_ij

Where the answers to x_i and x_j are alike, a student may mix them up at little cost. The teacher's answers are constants; the plan
P is differentiated. The authors' code adds 0.0008 times the sum over the minibatch in place of b times the mean, so
that b is 15 to 60 times as strong here in minibatches of 64 to 16; its a and tau differ from task to task.

Good where minibatches are large: the plan sees the minibatch alone. No adversarial example is seen, so none is withstood.

Source: Cui et al.: Sinkhorn distance minimization for knowledge distillation (COLING 2024), equations 6 to 10, a method for language
models; here it is the loss of an image classifier. b, eps, the rounds and the temperature inside SD are the paper's. a and the
temperature of the KL are ours: the authors choose them for each task of GLUE, a from 0.8 to 1 and tau from 1 to 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.defenses.training import Distillation, DistillationRecipe, Minibatch, StudentParams, kl
from robustkd.defenses.training.sinkhorn import sinkhorn_distance
from robustkd.lazy import F
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class SinKDParams(StudentParams):
    temperature: float = Field(2.0, gt=0, description="tau, of teacher and student")
    alpha: float = Field(0.9, ge=0, le=1, description="a, weight of the divergence; the hard labels get the rest")
    weight: float = Field(0.8, ge=0, description="b, weight of the Sinkhorn distance")
    regularisation: float = Field(0.1, gt=0, description="eps: the smaller, the nearer to an exact transport plan")
    rounds: int = Field(20, ge=1, description="normalisations of rows and columns")


class SinKDRecipe(DistillationRecipe):
    """Cross entropy, divergence sample by sample, distance set by set."""

    supports_data_parallel = False  # the sets are those of the whole minibatch

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """(1 - a) CE + a tau^2 KL + b SD."""
        p, tau, teacher, student = self.params, self.params.temperature, self.teacher.clean(batch), target(batch.x)
        soft = kl(teacher, student, teacher_temperature=tau, student_temperature=tau, reduction="batch")
        ours, theirs = (student.float() / tau).softmax(1), (teacher.float() / tau).softmax(1)
        distance = sinkhorn_distance(ours, theirs, p.regularisation, p.rounds)
        hard = F.cross_entropy(student, batch.y)
        loss = (1 - p.alpha) * hard + p.alpha * tau**2 * soft + p.weight * distance
        return loss, {"loss_soft": soft, "sinkhorn_distance": distance}


class SinKD(Distillation):
    """A student whose answers to a minibatch are moved onto its teacher's."""

    Params = SinKDParams
    recipe = SinKDRecipe
    source = "Cui et al. 2024, arXiv:2402.17110"
