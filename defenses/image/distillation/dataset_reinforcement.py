"""Dataset reinforcement: the teacher is asked once about a few augmented copies of each image, and the answers are replayed for ever.

    once:   copies r = 1 .. R of each image, shifted and mirrored; of T(copy) the k largest probabilities are kept
    train:  min_S  KL( kept(x, r) || S(copy_r(x)) ),    r drawn anew in each epoch; what k leave is spread over the other classes
            with probability 1 - p instead:  CE(S(x), y) of the image itself

How a copy was made is not stored: it is a function of (seed, image, r). An epoch costs what plain training does.

Good where many students learn from one expensive teacher, which is asked once. No adversarial example is seen, so none is
withstood.

Source: Faghri et al.: Reinforce data, multiply impact: improved model accuracy and robustness with dataset reinforcement (ICCV 2023),
section 3 and appendix; k, p and the smoothing as in the authors' code. The paper keeps 400 copies and augments more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from robustkd.contracts import FitContext
from robustkd.contracts.random import SampleRng
from robustkd.defenses.training import Minibatch, Teacher, kl
from robustkd.defenses.training.augment import crop_flip
from robustkd.defenses.training.batches import Samples
from robustkd.defenses.training.distillation import Distillation, DistillationRecipe, Prepared, StudentParams
from robustkd.lazy import F, torch
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 500
_TINY = 1e-12


class DatasetReinforcementParams(StudentParams):
    """Parameters of ``dataset-reinforcement``. Its copies are the augmentation."""

    augment: Literal["none"] = Field("none", description="the copies are shifted and mirrored already")
    copies: int = Field(16, ge=1, description="R, augmented copies of each image that the teacher is asked about")
    top: int = Field(10, ge=1, description="k, probabilities that are kept of each answer")
    probability: float = Field(0.99, ge=0, le=1, description="p, of a copy in place of the image itself")


def copied(x: Tensor, index: Tensor, copy: Tensor, copies: int, seed: int) -> Tensor:
    """(B, C, H, W): of each image the copy of its number, always the same."""
    return crop_flip(x, SampleRng(seed, index * copies + copy, "reinforcement"))


def dense(kept: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """(B, K) probabilities, from the (B, k) largest and their classes; the rest is spread evenly over the others."""
    left = (1 - kept.sum(1, keepdim=True)).clamp_min(0) / max(num_classes - kept.shape[1], 1)
    return left.expand(-1, num_classes).scatter(1, classes, kept)


class DatasetReinforcementRecipe(DistillationRecipe):
    """Divergence from stored answers.

    Args:
        teacher, params: see ``DistillationRecipe``; the teacher is not asked again.
        kept: (N, R, k) probabilities.
        classes: (N, R, k) int64, whose.
    """

    def __init__(self, teacher: Teacher, params: DatasetReinforcementParams, kept: Tensor, classes: Tensor) -> None:
        super().__init__(teacher, params)
        self.kept, self.classes = kept, classes

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """KL from the stored answer, or from the label."""
        p, rng = self.params, batch.rng("reinforcement")
        copy, replayed = rng.integers((), p.copies), rng.uniform(()) < p.probability
        x = copied(batch.x, batch.index, copy, p.copies, batch.seed)
        logits = target(torch.where(replayed[:, None, None, None], x, batch.x))
        stored = dense(self.kept[batch.index, copy], self.classes[batch.index, copy], logits.shape[1])
        soft = torch.where(replayed[:, None], stored, F.one_hot(batch.y, logits.shape[1]).to(stored.dtype))
        return kl(soft.clamp_min(_TINY).log(), logits, reduction="batch"), {"replayed": replayed.float().mean()}


class DatasetReinforcement(Distillation):
    """A student of answers that were written down."""

    Params = DatasetReinforcementParams
    recipe = DatasetReinforcementRecipe
    source = "Faghri et al. 2023, arXiv:2303.08983"

    def prepare(self, context: FitContext, teacher: Teacher, student: ClassifierTarget) -> Prepared:
        """Ask the teacher before the training."""
        return DatasetReinforcementRecipe(teacher, self.params, *self._answers(context, teacher)), student

    def _answers(self, context: FitContext, teacher: Teacher) -> tuple[Tensor, Tensor]:
        p, samples = self.params, Samples(context.train, context.device)
        found: list[list[Tensor]] = [[], []]
        for rows in torch.arange(len(samples)).split(_BATCH):
            x, _ = samples.take(rows)
            index = rows.to(context.device)
            answers = [
                teacher(copied(x, index, torch.full_like(index, copy), p.copies, context.seed)).float().softmax(1)
                for copy in range(p.copies)
            ]
            largest = torch.stack(answers, 1).topk(min(p.top, context.num_classes), dim=2)
            found[0].append(largest.values)
            found[1].append(largest.indices)
        return torch.cat(found[0]), torch.cat(found[1])
