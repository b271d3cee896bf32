"""What trainings on bounds share: how the radius grows, and the loss at the worst logits that bounds allow.

    eps_t    0 while warming up, then linear to eps
    kappa_t  from kappa_start to kappa_end while eps_t grows
    min_w    kappa_t CE(f(x), y) + (1 - kappa_t) CE(-m, y),        m_j <= z_y(x') - z_j(x') for every x' in the ball of radius eps_t

-m are logits of which none, relative to the true class's, can be exceeded in the ball: cross entropy rises with each, so the second
term is an upper bound of the loss at every x'. A method says how m is made.

The bounds are those of the network in evaluation: batch normalisation by its running statistics, no dropout.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from robustkd.contracts import Defense, FitContext, Target, ThreatModel, UsageError
from robustkd.contracts.threat import PixelBudget
from robustkd.defenses.training import Minibatch, NetworkParams, Recipe, fresh_network, train
from robustkd.defenses.training.batches import epoch_order
from robustkd.defenses.training.params import OptimiserParam, WeightDecayParam
from robustkd.lazy import F
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.certification.ball import Ball
    from robustkd.certification.network import BoundedNetwork


class BoundsParams(NetworkParams):
    """Parameters of every training on bounds.

    Attributes:
        warm_up_share, ramp_share: the paper's, where the epochs of warming up and growing are not given.
    """

    warm_up_share: ClassVar[float]
    ramp_share: ClassVar[float]

    optimiser: OptimiserParam = "adam"
    weight_decay: WeightDecayParam = 0.0
    selection: Literal["best", "weighted", "last"] = Field(
        "last",
        description="which epoch is deployed: last, since the radius of earlier ones is smaller; best and weighted as elsewhere",
    )
    eps: float | None = Field(
        None, gt=0, description="radius in linf that is trained for, in pixel units; default the campaign's"
    )
    warm_up: float | None = Field(None, ge=0, description="epochs on clean images before; default the paper's share of all")
    ramp: float | None = Field(None, ge=0, description="epochs in which the radius grows; default the paper's share of all")
    kappa_start: float = Field(1.0, ge=0, le=1, description="weight of the clean loss while warming up")
    kappa_end: float = Field(
        0.5, ge=0, le=1, description="the same once the radius is grown; 1 is the control: training without bounds"
    )

    def progress(self, epochs: float) -> float:
        """How far the radius has grown after so many epochs, in [0, 1]."""
        warm_up = self.warm_up if self.warm_up is not None else self.warm_up_share * self.epochs
        ramp = self.ramp if self.ramp is not None else self.ramp_share * self.epochs
        if epochs < warm_up:
            return 0.0
        return min(1.0, (epochs - warm_up) / ramp) if ramp else 1.0


class BoundsRecipe(Recipe[ClassifierTarget]):
    """Cross entropy on clean images and at the worst logits within the ball.

    Args:
        threat: a ball in linf.
        params: the defense's.
        steps_per_epoch: minibatches of an epoch.
    """

    state = ("step",)

    def __init__(self, threat: ThreatModel, params: Any, steps_per_epoch: int) -> None:
        self.threat, self.params, self.steps_per_epoch, self.step = threat, params, steps_per_epoch, 0
        self._eps = params.eps or threat.eps
        self._network: tuple[ClassifierTarget, BoundedNetwork] | None = None

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """kappa CE(f(x), y) + (1 - kappa) CE(-m, y)."""
        p = self.params
        grown = p.progress(self.step / self.steps_per_epoch)
        eps, kappa = grown * self._eps, p.kappa_start + grown * (p.kappa_end - p.kappa_start)
        natural = F.cross_entropy(target(batch.x), batch.y)
        if eps == 0 or kappa == 1:
            return natural, {"loss_natural": natural, "loss_bound": natural}
        margins = self.margins(target, self._bounded(target), batch, eps, grown)
        bound = F.cross_entropy(-margins, batch.y)
        return kappa * natural + (1 - kappa) * bound, {"loss_natural": natural, "loss_bound": bound}

    @abstractmethod
    def margins(self, target: ClassifierTarget, network: BoundedNetwork, batch: Minibatch, eps: float, grown: float) -> Tensor:
        """(B, K) what ``z_y - z_j`` is at least; 0 where j is the label.

        Args:
            target: in train mode.
            network: the same, as bounds see it.
            batch: x and y.
            eps: the radius now.
            grown: how far it has grown, in (0, 1].
        """

    def after_step(self, metrics: object) -> None:
        """Count the step."""
        self.step += 1

    def _bounded(self, target: ClassifierTarget) -> BoundedNetwork:
        from robustkd.certification.network import BoundedNetwork  # late: it imports torch

        if self._network is None or self._network[0] is not target:
            self._network = target, BoundedNetwork(target.module)
        return self._network[1]


def ball_around(target: ClassifierTarget, centre: Tensor, eps: float) -> Ball:
    """The ball in linf of radius ``eps`` around images, in the range of the target's pixels."""
    from robustkd.certification.ball import Ball  # late: it imports torch

    return Ball.linf(centre, centre.new_full((len(centre),), eps), *target.bounds)


class BoundsTraining(Defense):
    """A network trained on bounds of its own logits.

    Attributes:
        recipe: how the bounds are made.
    """

    uses_threat = True
    recipe: ClassVar[type[BoundsRecipe]]

    def refusal(self, threat: ThreatModel) -> str | None:
        """Bounds are those of balls in linf."""
        budget = threat.budget
        if isinstance(budget, PixelBudget) and budget.norm == "linf" and budget.where is None:
            return super().refusal(threat)
        return f"trains for balls in linf, and the threat model is {threat.plain}"

    def fit(self, context: FitContext) -> Target:
        """Train while the radius grows.

        Raises:
            UsageError: the threat model is no ball in linf.
            TargetError: a layer of the network has no known bounds.
        """
        if reason := self.refusal(context.threat):
            raise UsageError(f"'{self.name}' {reason}", fix="use norm: linf without a region, or another defense")
        p = self.params
        steps = len(epoch_order(len(context.train), p.batch_size, context.seed, 0))
        return train(context, fresh_network(context, p.model, p.model_params), self.recipe(context.threat, p, steps), p)
