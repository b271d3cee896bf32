"""MART: misclassification aware adversarial training.

    x~ = argmax_{x' in ball(x)} CE(f(x'), y)                                  from x + 0.001 * N(0, 1)
    min_theta  BCE(f(x~), y) + beta * KL(f(x) || f(x~)) * (1 - p_y(x))        averaged over the batch

    BCE = -log p_y(x~) - log(1 - max_{k != y} p_k(x~))

The second factor is differentiated too: what is misclassified on x counts in full, and is pushed to count for less.

Good where many training images are misclassified. Its gain under PGD is larger than under AutoAttack: judge it by the
latter.

Source: Wang et al.: Improving adversarial robustness requires revisiting misclassified examples (ICLR 2020), equation 11.
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
from robustkd.defenses.training.divergence import tempered_log_softmax
from robustkd.defenses.training.inner import StartParam
from robustkd.defenses.training.params import EpochsParam, LRParam, WeightDecayParam
from robustkd.lazy import F
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class MARTInner(InnerMaximisation):
    """The inner maximisation with the values of the authors' code."""

    start: StartParam = "noise"


class MARTParams(AdversarialParams):
    """Parameters of ``mart``; rate and weight decay are the authors' for ResNet-18."""

    milestone_fractions: ClassVar[tuple[float, ...]] = (75 / 120, 90 / 120)

    epochs: EpochsParam = 120
    lr: LRParam = 0.01
    weight_decay: WeightDecayParam = 3.5e-3
    inner: MARTInner = Field(default_factory=MARTInner, description="the examples to train on")
    beta: float = Field(5.0, ge=0, description="weight of the divergence between the outputs on x and on x~")


def boosted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) -log p_y - log(1 - max_{k != y} p_k), from (B, K) logits; exact however saturated they are."""
    log_p = tempered_log_softmax(logits, 1.0)
    of_label = F.one_hot(labels, logits.shape[1]).bool()
    rival = log_p.masked_fill(of_label, -float("inf")).argmax(1, keepdim=True)
    # log(1 - p_k) as the logarithm of the sum of all other probabilities: nothing cancels.
    all_but_rival = log_p.scatter(1, rival, -float("inf")).logsumexp(1)
    return -log_p.gather(1, labels[:, None]).squeeze(1) - all_but_rival


class MARTRecipe(AdversarialRecipe):
    """Boosted cross entropy on x~, and a divergence that counts by how badly x itself is classified."""

    def outer(self, target: ClassifierTarget, batch: Minibatch, inner: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """BCE(f(x~), y) + beta * KL(f(x) || f(x~)) * (1 - p_y(x))."""
        (x_adv,) = inner
        clean, adversarial = target(batch.x), target(x_adv)
        missed = 1 - clean.float().softmax(1).gather(1, batch.y[:, None]).squeeze(1)
        boosted = boosted_cross_entropy(adversarial, batch.y).mean()
        robust = (kl(clean, adversarial, reduction="none") * missed).mean()
        return boosted + self.params.beta * robust, {"loss_boosted": boosted, "loss_robust": robust}


class MART(AdversarialTraining):
    """A network that is trained hardest on what it misclassifies."""

    Params = MARTParams
    recipe = MARTRecipe
    source = "Wang et al. 2020 (ICLR, openreview rklOg6EFwS)"
