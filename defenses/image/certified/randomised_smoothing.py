"""Randomised smoothing: the vote of a network over noisy copies of an image, which a small change in l2 can turn only so far.

    min_theta  CE(f(x + sigma n), y)                 n ~ N(0, I)
    g(x)  = the class that f gives to most x + sigma n

Good where something is to be proved of a network of any kind and size, in l2: the analysis ``certified`` makes the certificate from
draws (``smoothing_draws``). An answer costs ``draws`` passes; a larger sigma certifies larger radii, of fewer samples. The control is a
defense with a smaller sigma, or ``standard``.

The deployed target votes with ``draws`` copies, drawn anew at each pass, while certificates are of infinitely many. It draws random
numbers, so attack it with ``eot``.

Source: Cohen, Rosenfeld, Kolter: Certified adversarial robustness via randomized smoothing (ICML 2019), section 3; sigma 0.12 to 1,
SGD, batches of 400 (CIFAR-10), 90 epochs, rate times 0.1 every 30.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from robustkd.contracts import Defense, FitContext, Target
from robustkd.defenses.training import Minibatch, NetworkParams, Recipe, fresh_network, train
from robustkd.defenses.training.params import EpochsParam, WeightDecayParam
from robustkd.lazy import F
from robustkd.targets import ClassifierTarget
from robustkd.targets.smoothed import SmoothedTarget

if TYPE_CHECKING:
    from torch import Tensor


class RandomisedSmoothingParams(NetworkParams):
    milestone_fractions: ClassVar[tuple[float, ...]] = (1 / 3, 2 / 3)

    epochs: EpochsParam = 90
    weight_decay: WeightDecayParam = 1e-4
    sigma: float = Field(0.25, gt=0, description="standard deviation of the noise, in pixel units")
    draws: int = Field(20, ge=1, description="noisy copies that vote on each image once it is trained")


class RandomisedSmoothingRecipe(Recipe[ClassifierTarget]):
    """Cross entropy on noisy images."""

    def __init__(self, sigma: float) -> None:
        self.sigma = sigma

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """CE(f(x + sigma n), y)."""
        noise = batch.rng("smoothing").normal(batch.x.shape[1:], dtype=batch.x.dtype)
        return F.cross_entropy(target(batch.x + self.sigma * noise), batch.y), {}


class RandomisedSmoothing(Defense):
    """A network trained on noisy images that answers by the vote over noisy copies."""

    Params = RandomisedSmoothingParams
    source = "Cohen et al. 2019, arXiv:1902.02918"

    def fit(self, context: FitContext) -> Target:
        """Train on noisy images; the epoch is chosen by accuracy on clean ones, without the vote."""
        p = self.params
        base = train(context, fresh_network(context, p.model, p.model_params), RandomisedSmoothingRecipe(p.sigma), p)
        target = SmoothedTarget(base, sigma=p.sigma, draws=p.draws)
        target.module.eval()
        return target
