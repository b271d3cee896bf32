"""ADP: adaptive diversity promoting. Members agree on the label and differ in what they make of the other classes.

    min  sum_m CE(f_m(x), y)  -  alpha * H( 1/M sum_m p_m )  -  beta * log det( P^T P )

with p_m = softmax(f_m(x)), H the entropy, and P the matrix whose M columns are the p_m without the entry of y, each of length 1:
the determinant is the squared volume that they span, 1 when they are orthogonal and 0 when two of them are the same.

Good for members that disagree on wrong classes. That withstands little: in ``dverge-small`` it does not differ from the
plain ensemble under transfer, and falls to 0.1 % where the attacker has the members.

Source: Pang et al.: Improving adversarial robustness via promoting ensemble diversity (ICML 2019), equations 6 to 8. The optimiser
is that of the authors' code: Adam at 0.001.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import FitContext, Target, UsageError
from robustkd.defenses.training import Minibatch, Recipe, train
from robustkd.defenses.training.members import MembersDefense, MembersParams, cross_entropies, first_members, outputs
from robustkd.defenses.training.params import OptimiserParam
from robustkd.lazy import F, torch
from robustkd.targets import EnsembleTarget
from robustkd.targets.ensemble import log_mean_probability

if TYPE_CHECKING:
    from torch import Tensor

_TINY = 1e-6


class ADPParams(MembersParams):
    optimiser: OptimiserParam = "adam"
    alpha: float = Field(2.0, ge=0, description="weight of the ensemble's entropy")
    beta: float = Field(0.5, ge=0, description="weight of the log determinant")


def log_det(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) log det(P^T P) of (M, B, K) logits; 1e-6 is added to the diagonal, so that it is finite for members that agree."""
    others = logits.scatter(2, labels.expand(len(logits), -1).unsqueeze(2), -torch.inf)
    # Of unit length whatever share the label has left them: the softmax over the other classes differs from theirs by a factor.
    columns = F.normalize(others.softmax(2), dim=2).transpose(0, 1)
    # Products and a sum: autocast would take a matrix product in half precision.
    gram = (columns.unsqueeze(1) * columns.unsqueeze(2)).sum(3)
    return torch.logdet(gram + _TINY * torch.eye(len(logits), device=logits.device))


class ADPRecipe(Recipe[EnsembleTarget]):
    """Cross entropies, less the ensemble's entropy and diversity."""

    def __init__(self, alpha: float, beta: float) -> None:
        self.alpha, self.beta = alpha, beta

    def loss(self, target: EnsembleTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """sum CE - alpha * H - beta * log det, averaged over the samples."""
        logits = outputs(target.members, batch.x).float()
        log_p = log_mean_probability(logits)
        entropy = -(log_p.exp() * log_p).sum(1).mean()
        volume = log_det(logits, batch.y).mean()
        loss = cross_entropies(logits, batch.y).sum() - self.alpha * entropy - self.beta * volume
        return loss, {"ensemble_entropy": entropy, "log_det": volume}


class ADP(MembersDefense):
    """An ensemble whose members are wrong in different ways."""

    Params = ADPParams
    source = "Pang et al. 2019, arXiv:1901.08846"

    def fit(self, context: FitContext) -> Target:
        """Train the members together.

        Raises:
            UsageError: there are as many members as classes, whose volume is always 0.
        """
        p = self.params
        target = EnsembleTarget(first_members(context, p))
        if len(target.members) >= context.num_classes:
            raise UsageError(
                f"adp with {len(target.members)} members on {context.num_classes} classes: their volume is always 0",
                fix="use fewer members than classes",
            )
        return train(context, target, ADPRecipe(p.alpha, p.beta), p)
