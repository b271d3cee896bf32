"""Fast adversarial training: one step of 1.25 eps from a uniform point, and a watch for catastrophic overfitting.

    x~ = project(x_0 + 1.25 eps * steepest(grad CE(f(x_0), y))),   x_0 uniform in ball(x)
    min_theta  mean CE(f(x~), y)

A network can learn to bend its loss so that the one step misses, within a few minibatches: its robust accuracy falls to about 0
while the training loss looks better than ever. PGD on validation data after each epoch shows it; the training then stops, and an
earlier epoch is deployed. The paper's cyclic rate is a cosine here.

Good where several steps an image cost too much. The larger eps, the sooner it overfits to its one step.

Source: Wong, Rice, Kolter: Fast is better than free: revisiting adversarial training (ICLR 2020), algorithm 3 and section 5.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from robustkd.defenses.image.adversarial.pgd_at import PGDATRecipe
from robustkd.defenses.training import AdversarialParams, AdversarialTraining, InnerMaximisation
from robustkd.defenses.training.params import EpochsParam, ScheduleParam
from robustkd.defenses.training.selection import ROBUST_ACCURACY


class FastInner(InnerMaximisation):
    """The inner maximisation of fast adversarial training: a single step."""

    step_share: ClassVar[float] = 1.25

    steps: int = Field(1, ge=1, le=1, description="one; pgd-at takes more")
    step_size: float | None = Field(None, gt=0, description="in pixel units; default 1.25 * eps")


class FastParams(AdversarialParams):
    epochs: EpochsParam = 30
    schedule: ScheduleParam = "cosine"
    inner: FastInner = Field(default_factory=FastInner, description="the examples to train on")
    collapse: float = Field(
        0.2, gt=0, le=1, description="a fall of robust validation accuracy, from its best, that ends the training"
    )


class FastRecipe(PGDATRecipe):
    """Cross entropy on one-step examples, until they fool nobody but themselves."""

    def collapsed(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Catastrophic overfitting: robust accuracy under PGD is ``collapse`` below its best."""
        robust = [epoch[ROBUST_ACCURACY] for epoch in history]
        return robust[-1] < max(robust) - self.params.collapse


class Fast(AdversarialTraining):
    """A network trained on examples of a single step."""

    Params = FastParams
    recipe = FastRecipe
    source = "Wong et al. 2020, arXiv:2001.03994"
