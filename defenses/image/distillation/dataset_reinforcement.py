"""Dataset reinforcement: the teacher is asked once about a few augmented copies of each image, and the answers are replayed for ever.

    once:   copies r = 1 .. R of each image, shifted and mirrored; of T(copy) the k largest probabilities are kept
    train:  min_S  KL( kept(x, r) || S(copy_r(x)) ),    r drawn anew in each epoch; what k leave is spread over the other classes
            with probability 1 - p instead:  CE(S(x), y) of the image itself

How a copy was made is not stored: it is a function of (seed, image, r). An epoch costs what plain training does.

With thresholds it is FerKD: what the teacher is unsure about is not imitated. With c the largest stored probability of a copy,

    c < drop_below:  the copy has no part;     c < soften_below:  the label, smoothed, in the place of the answer;     else the answer

FKD, which FerKD stands on, is this without thresholds (``top: 5``). FerKD's SelfMix, two regions of one image mixed, is left out, and its
thresholds are not known to us: they have no defaults but 0, which turns them off.

Good where many students learn from one expensive teacher, which is asked once. No adversarial example is seen, so none is
withstood.

Source: Faghri et al.: Reinforce data, multiply impact: improved model accuracy and robustness with dataset reinforcement (ICCV 2023),
section 3 and appendix; k, p and the smoothing as in the authors' code. The paper keeps 400 copies and augments more. Thresholds: Shen:
FerKD: surgical label adaptation for efficient distillation (ICCV 2023), arXiv:2312.17473; read in the abstract and as others describe it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from robustkd.contracts import FitContext
from robustkd.contracts.params import AddedLater
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
    drop_below: Annotated[float, AddedLater()] = Field(
        0.0, ge=0, le=1, description="copies that the teacher is less sure about than this are left out (FerKD)"
    )
    soften_below: Annotated[float, AddedLater()] = Field(
        0.0, ge=0, le=1, description="of copies that it is less sure about than this, the smoothed label is learnt (FerKD)"
    )
    smoothing: Annotated[float, AddedLater()] = Field(
        0.1, ge=0, lt=1, description="the share of such a label that is spread over all classes"
    )

    @model_validator(mode="after")
    def _bands_in_order(self) -> DatasetReinforcementParams:
        if 0 < self.soften_below < self.drop_below:
            raise ValueError("soften_below is under drop_below: what is softened lies above what is left out")
        return self


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
        hard = F.one_hot(batch.y, logits.shape[1]).to(stored.dtype)
        confidence, smooth = self.kept[batch.index, copy, 0], (1 - p.smoothing) * hard + p.smoothing / logits.shape[1]
        stored = torch.where((confidence < p.soften_below)[:, None], smooth, stored)
        soft = torch.where(replayed[:, None], stored, hard).clamp_min(_TINY).log()
        measured = {"replayed": replayed.float().mean()}
        if not p.drop_below:
            return kl(soft, logits, reduction="batch"), measured
        shown = ~(replayed & (confidence < p.drop_below))
        loss = torch.where(shown, kl(soft, logits, reduction="none"), 0.0).sum() / shown.sum().clamp_min(1)
        return loss, measured | {"dropped": 1 - shown.float().mean()}


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
