"""SSLD: soft labels alone, on images with labels and on images without, and then fine-tuning on the labels there are.

    1.  min  JS(T(x), S(x))      over all images, ``epochs``                 JS = 1/2 KL(p_T || m) + 1/2 KL(p_S || m),  m = (p_T + p_S) / 2
    2.  min  CE(S(x), y)         over those with a label, ``finish_epochs``, at ``finish_lr``

Of the training images the share ``labelled`` keeps its labels; the other labels are never read, neither here nor by what is trained here.
(The teacher is another defense, which has seen what its own parameters say.)

Good where images are many and labels few. Adversarial training gains from images without labels; whether a student does is what its worst
case says. Control: ``unlabelled: false``, as many steps on the images with labels alone.

Source: Cui et al.: Beyond self-supervision: a simple yet effective network distillation alternative to improve backbones (2021),
arXiv:2103.05959; its abstract was read, and the divergence is that of PaddleClas from memory. There images are added by their similarity;
here they are the rest of the training data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from robustkd.contracts import Defense, FitContext, ModelName, Target, TargetRef
from robustkd.contracts.params import ModelParams
from robustkd.defenses.training import Minibatch, Recipe, Teacher, fresh_network
from robustkd.defenses.training.divergence import relative_entropy
from robustkd.defenses.training.networks import teacher
from robustkd.defenses.training.seeding import derived_seed
from robustkd.defenses.training.stages import Stage, StagedParams, finishing, run_stages
from robustkd.lazy import torch
from robustkd.targets import ClassifierTarget, frozen

if TYPE_CHECKING:
    from torch import Tensor


class SSLDParams(StagedParams):
    teacher: TargetRef = Field(description="another defense, whose probabilities are the soft labels")
    student: ModelName = Field(description="the student's architecture: a model plug-in")
    student_params: ModelParams = Field(default_factory=dict)
    labelled: float = Field(0.5, gt=0, le=1, description="share of the training images whose labels are used")
    unlabelled: bool = Field(
        True,
        description="whether the other images have soft labels; false, the control: those with labels instead, as many steps",
    )


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """(B,) the mean divergence of two distributions from their mixture, from (B, K) logits each: 0 if they are one, ln 2 at most."""
    log_p, log_q = first.float().log_softmax(1), second.float().log_softmax(1)
    log_m = torch.logaddexp(log_p, log_q) - np.log(2)
    return (relative_entropy(log_p, log_m) + relative_entropy(log_q, log_m)) / 2


class SSLDRecipe(Recipe[ClassifierTarget]):
    """Divergence of the student's probabilities and the teacher's."""

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """JS(T(x), S(x)); no label."""
        return jensen_shannon(self.teacher(batch.x), target(batch.x)).mean(), {}


class SSLD(Defense):
    """A student of soft labels, also of images without a label."""

    Params = SSLDParams
    source = "Cui et al. 2021, arXiv:2103.05959"
    version = "2"  # in 1 the control made fewer steps

    def fit(self, context: FitContext) -> Target:
        """Train both stages; the epoch of each is chosen by validation accuracy."""
        p = self.params
        student = fresh_network(context, p.student, p.student_params)
        network = teacher(context, p.teacher)
        with frozen(network.module):
            run_stages(context, self._stages(context, student, Teacher(network)))
        return student

    def _stages(self, context: FitContext, student: ClassifierTarget, soft: Teacher) -> Iterator[Stage]:
        p = self.params
        order = np.random.default_rng(derived_seed(context.seed, "labelled")).permutation(len(context.train))
        rows = np.sort(order[: max(1, round(p.labelled * len(order)))])
        # Without the others as many images go by: else it would be known what more steps are worth, and not what the images are.
        soft_data = None if p.unlabelled else {"train": context.train.select(np.resize(rows, len(order)))}
        yield Stage("soft", student, SSLDRecipe(soft), p, data=soft_data)
        yield finishing(student, p, {"train": context.train.select(rows)})
