"""Self-distillation for further pre-training: a network that is pre-trained further teaches the network that it came from.

    1.  T = S_0;  min_T  L_rec                                                       ``epochs``
    2.  S = S_0;  min_S  L_rec + weight * mean || s(visible) - t(visible) ||^2       ``epochs``, T frozen
    3.  min_S  CE(f(x), y)                                                           as ``mae``

S_0 is the network of another defense, pre-trained on masked images; s and t are what the networks' last norm makes of the visible patches.
The second stage starts from S_0 again, not from T.

Good against the overfitting of long pre-training on few images. Control: ``weight: 0``, the same further pre-training without a teacher.

Source: Lee et al.: Self-distillation for further pre-training of transformers (ICLR 2023), arXiv:2210.02871; its abstract was read. There
S_0 is pre-trained on other data than those of the task. The mean over features in place of a sum is ours.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import Field

from robustkd.contracts import Defense, FitContext, Target, TargetRef
from robustkd.defenses.image.representations.masking import MaskedRecipe, encoded, transformer, with_decoder
from robustkd.defenses.training import Minibatch, teacher
from robustkd.defenses.training.members import trained_copy
from robustkd.defenses.training.stages import Stage, StagedParams, finishing, run_stages
from robustkd.lazy import F, torch
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class FurtherPretrainingParams(StagedParams):
    start: TargetRef = Field(
        description="S_0, another defense whose network is a tiny-vit, such as one of mae with finish: probe"
    )
    mask: float = Field(0.75, gt=0, lt=1, description="share of the patches that are masked")
    weight: float = Field(1.0, ge=0, description="of the distance from the features of T")


class FurtherPretrainingRecipe(MaskedRecipe):
    """The reconstruction, and the distance from the further pre-trained network."""

    def __init__(self, student: ClassifierTarget, teacher: ClassifierTarget, params: FurtherPretrainingParams) -> None:
        super().__init__(student, params.mask)
        self.teacher, self.weight = teacher, params.weight

    def beside(self, parts: Any, batch: Minibatch, blocks: list[Tensor], visible: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """weight * mean ||s - t||^2 over the visible patches."""
        own, theirs = transformer(self.student, "further-pretraining"), transformer(self.teacher, "further-pretraining")
        with torch.no_grad():
            wanted = theirs.norm(encoded(theirs, batch.x, visible)[-1])
        distance = F.mse_loss(own.norm(blocks[-1]), wanted)
        return self.weight * distance, {"loss_features": distance}


class FurtherPretraining(Defense):
    """A network that its own further pre-training has taught."""

    Params = FurtherPretrainingParams
    source = "Lee et al. 2023, arXiv:2210.02871"

    def fit(self, context: FitContext) -> Target:
        """Train the three stages; the epoch of the last is chosen by validation accuracy.

        Raises:
            UsageError: the network has no patches.
        """
        start = teacher(context, self.params.start)
        student = trained_copy(start).to(context.device)
        run_stages(context, self._stages(context, start, student))
        return student

    def _stages(self, context: FitContext, start: ClassifierTarget, student: ClassifierTarget) -> Iterator[Stage]:
        p = self.params
        further = trained_copy(start).to(context.device)
        yield Stage("further", with_decoder(context, further, "further"), MaskedRecipe(further, p.mask), p.with_last_epoch())
        frozen = copy.deepcopy(further.module).requires_grad_(False).eval()
        taught = ClassifierTarget(frozen, num_classes=start.num_classes, input_shape=start.input_shape, bounds=start.bounds)
        trained = with_decoder(context, student, "again")
        yield Stage("taught", trained, FurtherPretrainingRecipe(student, taught, p), p.with_last_epoch())
        yield finishing(student, p)
