"""MAE: a network that fills in masked patches before it learns labels.

    1.  min  L_rec                          ``epochs``; no label
    2.  min  CE(f(x), y)                    ``finish_epochs``; the last layer alone (probe), or all weights (finetune)

L_rec is that of ``masking``. Good as the start and as the control of the students of masked images (``dmae``, ``further-pretraining``,
``hybrid-distill``). No adversarial example is seen.

Source: He et al.: Masked autoencoders are scalable vision learners (CVPR 2022), arXiv:2111.06377. The sizes are ours.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from robustkd.contracts import Defense, FitContext, ModelName, Target
from robustkd.contracts.params import ModelParams
from robustkd.defenses.image.representations.masking import MaskedRecipe, with_decoder
from robustkd.defenses.training import fresh_network
from robustkd.defenses.training.stages import Stage, StagedParams, finishing, run_stages
from robustkd.targets import ClassifierTarget


class MaskedParams(StagedParams):
    """Parameters of every network that learns of masked images."""

    model: ModelName = Field("tiny-vit", description="the architecture: tiny-vit")
    model_params: ModelParams = Field(default_factory=dict)
    mask: float = Field(0.75, gt=0, lt=1, description="share of the patches that are masked")


class MAE(Defense):
    """A network that has filled in masked images."""

    Params = MaskedParams
    source = "He et al. 2022, arXiv:2111.06377"

    def fit(self, context: FitContext) -> Target:
        """Train both stages; the epoch of the second is chosen by validation accuracy.

        Raises:
            UsageError: the architecture has no patches.
        """
        student = fresh_network(context, self.params.model, self.params.model_params)
        run_stages(context, self._stages(context, student))
        return student

    def _stages(self, context: FitContext, student: ClassifierTarget) -> Iterator[Stage]:
        p = self.params
        trained = with_decoder(context, student, "mae")
        yield Stage("masked", trained, MaskedRecipe(student, p.mask), p.with_last_epoch())
        yield finishing(student, p)
