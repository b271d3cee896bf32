"""PGD adversarial training.

    x~ = argmax_{x' in ball(x)} CE(f(x'), y)      (PGD, defenses/training/inner.py)
    min_theta  mean CE(f(x~), y)

Source: Madry et al.: Towards deep learning models resistant to adversarial attacks (ICLR 2018). The defaults (200 epochs, rate
x0.1 at 1/2 and 3/4 of them, weight decay 5e-4, the best epoch on held-out data) are those of Rice, Wong, Kolter: Overfitting
in adversarially robust deep learning (ICML 2020), without which robust accuracy falls again after the first drop.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from robustkd.contracts import Defense, FitContext, Target, ThreatModel
from robustkd.defenses.training import Adversary, InnerMaximisation, Minibatch, NetworkParams, Recipe, fresh_network, train
from robustkd.targets import ClassifierTarget


class PGDATParams(NetworkParams):
    """Parameters of ``pgd-at``."""

    inner: InnerMaximisation = Field(default_factory=InnerMaximisation, description="the examples to train on")


class PGDATRecipe(Recipe):
    """Cross entropy on adversarial examples."""

    def __init__(self, adversary: Adversary, threat: ThreatModel) -> None:
        self.adversary, self.threat = adversary, threat

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """CE(f(x~), y)."""
        return F.cross_entropy(target(self.adversary(target, batch)), batch.y), {}


class PGDAT(Defense):
    """A network trained on its own adversarial examples."""

    Params = PGDATParams
    uses_threat = True
    source = "Madry et al. 2018, arXiv:1706.06083"

    def fit(self, context: FitContext) -> Target:
        """Train on adversarial examples; the epoch is chosen by robust validation accuracy."""
        p = self.params
        recipe = PGDATRecipe(Adversary.under(p.inner, context.threat), context.threat)
        return train(context, fresh_network(context, p.model, p.model_params), recipe, p)
