"""Adversarial training of an ensemble: every member learns from the examples that fool them together.

    x~ = argmax_{x' in ball(x)} CE( 1/M sum_m softmax(f_m(x')), y )         PGD-10 on the ensemble
    min  sum_m CE(f_m(x~), y)

Good white-box, where diversity alone does not hold. It costs what ``pgd-at`` costs for all members together, and its members
stay alike: examples pass from one to the next.

The baseline "AdvT" of Yang et al.: DVERGE (NeurIPS 2020), section 4.1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from robustkd.contracts import FitContext, Target, ThreatModel
from robustkd.defenses.training import Adversary, InnerMaximisation, Minibatch, Recipe, TrainedUnderAttack, train
from robustkd.defenses.training.members import MembersDefense, MembersParams, cross_entropies, first_members, outputs
from robustkd.targets import EnsembleTarget

if TYPE_CHECKING:
    from torch import Tensor


class EnsembleATParams(MembersParams):
    selection: Literal["best", "last"] = Field("best", description="deploy the best epoch on the validation data, or the last")
    inner: InnerMaximisation = Field(default_factory=InnerMaximisation, description="the examples to train on")


class EnsembleATRecipe(Recipe[EnsembleTarget]):
    """Cross entropies at the ensemble's own adversarial examples."""

    def __init__(self, adversary: Adversary, threat: ThreatModel) -> None:
        self.adversary, self.threat = adversary, threat

    def loss(self, target: EnsembleTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the members' cross entropies at the adversarial examples, sum_m CE(f_m(x~), y)."""
        x_adv = self.adversary(target, batch)
        return cross_entropies(outputs(target.members, x_adv), batch.y).sum(), {}


class EnsembleAT(TrainedUnderAttack, MembersDefense):
    """An ensemble trained on its own adversarial examples."""

    Params = EnsembleATParams
    source = "Yang et al. 2020, arXiv:2009.14720"

    def fit(self, context: FitContext) -> Target:
        """Train the members together; the epoch is chosen by the ensemble's robust validation accuracy."""
        p = self.params
        recipe = EnsembleATRecipe(Adversary.under(p.inner, context.threat), context.threat)
        return train(context, EnsembleTarget(first_members(context, p)), recipe, p)
