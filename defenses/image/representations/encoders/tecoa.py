"""TeCoA: an image encoder that is fine-tuned on adversarial examples against the class vectors of its texts.

    x~ = argmax_{x' in ball(x)} CE(scale * cos(f(x'), v), y)
    min_f  mean CE(scale * cos(f(x~), v), y)                  v, the vectors of the class texts, stay as they are

It is adversarial training with a last layer that a text gave, from trained weights. What keeps the encoder useful for classes that it
is not tuned on is that the vectors of these stay where they were.

Good where the classes of the fine-tuning are those of the attack. With ``held_out`` it is seen what it does to others. The control is
``adversarial: false``, the same fine-tuning on the images as they are.

From the authors: the loss, the fixed texts, PGD as the inner maximisation (eps 1/255 to 4/255 on CLIP's ViT-B/32). From us: the sizes,
and the epoch chosen on validation images of the classes that are seen. The paper's weights come from its abstract and the code of
RobustVLM, which trains it beside FARE (AdamW, rate 1e-5, 10 steps of PGD from a uniform start).

Source: Mao et al.: Understanding zero-shot adversarial robustness for large-scale models (ICLR 2023), section 3; chs20/RobustVLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import FitContext, Target
from robustkd.defenses.image.representations.encoders.held_out import HeldOutDefense, without_classes
from robustkd.defenses.image.representations.encoders.towers import FromEncoderParams, tuned_copy, two_towers
from robustkd.defenses.training import Adversary, Minibatch, Recipe, TrainedUnderAttack, train
from robustkd.defenses.training.inner import InnerSteps
from robustkd.lazy import F
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class TeCoAParams(FromEncoderParams):
    inner: InnerSteps = Field(default_factory=InnerSteps, description="the examples to train on")
    adversarial: bool = Field(True, description="train on x~; false is the control, x itself")


class TeCoARecipe(Recipe[ClassifierTarget]):
    """The cross entropy of the cosines at x~."""

    def __init__(self, adversary: Adversary, params: TeCoAParams) -> None:
        self.adversary, self.params = adversary, params
        self.threat = adversary.threat if params.adversarial else None

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """CE(f(x~), y)."""
        x = self.adversary(target, batch) if self.params.adversarial else batch.x
        return F.cross_entropy(target(x), batch.y), {}


class TeCoA(TrainedUnderAttack, HeldOutDefense):
    """An encoder tuned on adversarial examples against its texts."""

    Params = TeCoAParams
    source = "Mao et al. 2023, arXiv:2212.07016"

    def fit(self, context: FitContext) -> Target:
        """Fine-tune; the epoch is chosen as ``selection`` says, on the classes that are seen."""
        p = self.params
        recipe = TeCoARecipe(Adversary.under(p.inner, context.threat), p)
        return train(without_classes(context, p.held_out), tuned_copy(two_towers(context, p.encoder)), recipe, p)
