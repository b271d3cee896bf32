"""TRADES: accuracy on x, and outputs that stay the same in the ball around it.

    x~ = argmax_{x' in ball(x)} KL(f(x) || f(x'))                 from x + 0.001 * N(0, 1)
    min_theta  CE(f(x), y) + beta * KL(f(x) || f(x~))             both arguments are differentiated

Good where the balance of clean accuracy and robustness is to be chosen: a larger beta trades the first for the second. Costs
and limits are those of ``pgd-at``.

Source: Zhang et al.: Theoretically principled trade-off between robustness and accuracy (ICML 2019), algorithm 1; beta is the
paper's 1/lambda, 6 in its experiments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from robustkd.defenses.training import (
    AdversarialParams,
    AdversarialRecipe,
    AdversarialTraining,
    InnerMaximisation,
    Minibatch,
    kl,
)
from robustkd.defenses.training.inner import OwnLoss, StartParam
from robustkd.defenses.training.params import EpochsParam, WeightDecayParam
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class TRADESInner(InnerMaximisation):
    """The inner maximisation with the paper's loss and start."""

    start: StartParam = "noise"
    loss: OwnLoss = Field(
        "kl-student-clean", description="what is climbed: cross entropy, or the divergence from the output on x"
    )


class TRADESParams(AdversarialParams):
    milestone_fractions: ClassVar[tuple[float, ...]] = (75 / 100, 90 / 100)

    epochs: EpochsParam = 100
    weight_decay: WeightDecayParam = 2e-4
    inner: TRADESInner = Field(default_factory=TRADESInner, description="the examples to train on")
    beta: float = Field(6.0, ge=0, description="weight of the divergence between the outputs on x and on x~")


class TRADESRecipe(AdversarialRecipe):
    """Cross entropy on x, divergence between x and x~."""

    def outer(self, target: ClassifierTarget, batch: Minibatch, inner: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """CE(f(x), y) + beta * KL(f(x) || f(x~))."""
        (x_adv,) = inner
        clean = target(batch.x)
        natural, robust = batch.cross_entropy(clean), kl(clean, target(x_adv), reduction="batch")
        return natural + self.params.beta * robust, {"loss_natural": natural, "loss_robust": robust}


class TRADES(AdversarialTraining):
    """A network that is trained to answer alike in the whole ball."""

    Params = TRADESParams
    recipe = TRADESRecipe
    source = "Zhang et al. 2019, arXiv:1901.08573"
    learns_soft_labels = True
