"""PGD adversarial training.

    x~ = argmax_{x' in ball(x)} CE(f(x'), y)      (PGD, defenses/training/inner.py)
    min_theta  mean CE(f(x~), y)

Good as the reference that every other defense has to beat. It costs steps + 1 times a plain training and several points of
clean accuracy, and holds for the norm and about the eps that it was trained with, not for others.

Source: Madry et al.: Towards deep learning models resistant to adversarial attacks (ICLR 2018). The defaults (200 epochs, rate
x0.1 at 1/2 and 3/4 of them, weight decay 5e-4, the best epoch on held-out data) are those of Rice, Wong, Kolter: Overfitting
in adversarially robust deep learning (ICML 2020), without which robust accuracy falls again after the first drop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.defenses.training import AdversarialParams, AdversarialRecipe, AdversarialTraining, Minibatch
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class PGDATParams(AdversarialParams):
    """Parameters of ``pgd-at``."""


class PGDATRecipe(AdversarialRecipe):
    """The cross entropy on the adversarial examples of the inner maximisation."""

    def outer(self, target: ClassifierTarget, batch: Minibatch, inner: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """The cross entropy at the adversarial examples, CE(f(x~), y)."""
        (x_adv,) = inner
        return batch.cross_entropy(target(x_adv)), {}


class PGDAT(AdversarialTraining):
    """A network trained on its own adversarial examples."""

    Params = PGDATParams
    recipe = PGDATRecipe
    source = "Madry et al. 2018, arXiv:1706.06083"
    learns_soft_labels = True
