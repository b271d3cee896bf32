"""Elastic student: one set of weights from which narrower students are cut, distilled at several widths in each step.

    min_w  sum_{s in {smallest, drawn, 1}}  alpha * tau^2 * KL(T(x; tau) || S_s(x; tau)) + (1 - alpha) * CE(S_s(x), y)

S_s is the network of the first channels and units, a share s of them; s is drawn in each step from the widths between the smallest and the
largest (the sandwich rule).

Good to see how robustness depends on the width that is cut from one set of weights, and whether adversarial examples transfer between
widths: ``sub-network`` attacks each, the analysis ``sub-networks`` shows all.

Controls: ``trained: largest``, where only the full width is distilled and the others are cut out untrained; and ``kd`` of a network of the
small width by itself.

Sources: POA (ECCV 2024) and AutoDistil (NeurIPS 2022), whose abstracts and README were read: an elastic student that shares its weights
with the intact one is distilled beside it, and afterwards any size is cut out. This is a reduced form: a CNN for a transformer, width
without depth, Hinton's divergence for POA's self-supervised losses and AutoDistil's relations of queries, keys and values. The sandwich
rule: Yu, Huang: Universally slimmable networks (ICCV 2019), arXiv:1903.05134, section 3.2; there the narrow networks learn from the full
one, here from the teacher.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from robustkd.contracts import FitContext, ModelName, UsageError
from robustkd.defenses.image.distillation.kd import KDParams
from robustkd.defenses.training import Distillation, DistillationRecipe, Minibatch, Prepared, Teacher, kl
from robustkd.lazy import F, torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.sub_network import sub_networks

if TYPE_CHECKING:
    from torch import Tensor


class ElasticStudentParams(KDParams):
    student: ModelName = Field("elastic-cnn", description="the student's architecture: a model plug-in with widths")
    trained: Literal["sandwich", "largest"] = Field(
        "sandwich",
        description="sandwich: the smallest width, one drawn and the largest in each step; largest: that alone, a control",
    )


class ElasticStudentRecipe(DistillationRecipe):
    """The loss of plain distillation, summed over some widths."""

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over the widths of this step; torch's generator, which draws one, is seeded for each."""
        p, tau = self.params, self.params.temperature
        network, taught = sub_networks(target), self.teacher.clean(batch)
        last = len(network.names) - 1
        numbers = {last}
        if p.trained == "sandwich":
            numbers |= {0, int(torch.randint(1, last, ())) if last > 1 else 0}
        losses = []
        for number in sorted(numbers):
            logits = network.answer(number, batch.x)
            soft = kl(taught, logits, teacher_temperature=tau, student_temperature=tau, reduction=p.kl_reduction)
            losses.append(p.alpha * tau**2 * soft + (1 - p.alpha) * F.cross_entropy(logits, batch.y))
        return torch.stack(losses).sum(), {"loss_full": losses[-1]}


class ElasticStudent(Distillation):
    """A student that can be cut to several widths."""

    Params = ElasticStudentParams
    recipe = ElasticStudentRecipe
    source = "reduced from POA (ECCV 2024) and AutoDistil (NeurIPS 2022); Yu and Huang 2019, arXiv:1903.05134"

    def prepare(self, context: FitContext, teacher: Teacher, student: ClassifierTarget) -> Prepared:
        """The loss, and the student.

        Raises:
            UsageError: no narrower network can be cut from the student's architecture.
        """
        if not hasattr(student.module, "widths"):
            raise UsageError(
                f"elastic-student needs a network with widths, '{self.params.student}' has none", fix="name elastic-cnn"
            )
        return super().prepare(context, teacher, student)
