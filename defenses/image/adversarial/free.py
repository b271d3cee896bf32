"""Free adversarial training: one backward pass moves the weights and the perturbation, m times on each minibatch.

    for each minibatch, m times:
        g_theta, g_x = grad CE(f(x + delta), y)
        theta <- theta - lr * g_theta
        delta <- project(delta + eps * steepest(g_x))          onto the ball around 0; delta goes on to the next minibatch

An epoch costs m plain ones, so the default is the paper's 200 / m.

Good where a training may cost no more than a plain one. Every perturbation is one step from the last, as in ``fast``: judge
it by attacks of many steps.

Source: Shafahi et al.: Adversarial training for free! (NeurIPS 2019), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.oracle import finite_or_zero
from robustkd.contracts import FitContext, ThreatModel
from robustkd.defenses.training import (
    AdversarialRecipe,
    Adversary,
    AWPParams,
    InnerMaximisation,
    Minibatch,
    NetworkParams,
    OneNetwork,
    Prepared,
    TrainedUnderAttack,
)
from robustkd.defenses.training.params import WeightDecayParam
from robustkd.lazy import F, torch
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class FreeParams(NetworkParams):
    epochs: int = Field(25, ge=1, description="passes over the training data, each of m steps a minibatch")
    weight_decay: WeightDecayParam = 2e-4
    replays: int = Field(8, ge=1, description="m, the steps on each minibatch")
    eps: float | None = Field(None, gt=0, description="radius in pixel units; default the campaign's")
    awp: AWPParams | None = Field(None, description="adversarial weight perturbation: {} turns it on")


class FreeRecipe(AdversarialRecipe):
    """Cross entropy at x + delta, where delta takes one step with each step of the weights.

    Attributes:
        delta: (batch_size + 1, C, H, W), a row for each place in a minibatch (the last one of an epoch may have one more).
    """

    supports_data_parallel = False  # a process would lose the part of delta that it did not see

    def __init__(self, adversary: Adversary, threat: ThreatModel, params: FreeParams, image: Tensor) -> None:
        super().__init__(adversary, threat, params)
        self.replays = params.replays
        self.delta = image.new_zeros((params.batch_size + 1, *image.shape))
        self._moving = self.delta

    def inner(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, ...]:
        """x + delta inside the pixel range, with delta to be differentiated."""
        self._moving = self.delta[: len(batch.x)].clone().requires_grad_()
        return ((batch.x + self._moving).clamp(*target.bounds),)

    def outer(self, target: ClassifierTarget, batch: Minibatch, inner: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """The cross entropy at the perturbed images, CE(f(x + delta), y)."""
        (x_adv,) = inner
        return F.cross_entropy(target(x_adv), batch.y), {}

    def after_step(self, metrics: Mapping[str, float]) -> None:
        """delta <- project(delta + eps * steepest(g_x)), by the gradient that came with the weights'."""
        threat, delta = self.adversary.threat, self._moving.detach()
        assert self._moving.grad is not None
        ball = Ball.around(torch.zeros_like(delta), threat.eps, threat.norm, (-1.0, 1.0))
        self.delta[: len(delta)] = ball.project(delta + threat.eps * ball.steepest(finite_or_zero(self._moving.grad), delta))

    def tensors(self) -> dict[str, Tensor]:
        """The perturbation delta, which lives on from step to step."""
        return {"delta": self.delta}

    @override
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self.delta = tensors["delta"].clone()


class Free(TrainedUnderAttack, OneNetwork):
    """A network trained on perturbations that its own backward passes give away; the epoch is chosen as ``selection`` says."""

    Params = FreeParams
    source = "Shafahi et al. 2019, arXiv:1904.12843"

    @override
    def refusal(self, threat: ThreatModel) -> str | None:
        return InnerMaximisation(eps=self.params.eps).refusal(threat)

    @contextmanager
    def training(self, context: FitContext, student: ClassifierTarget) -> Iterator[Prepared]:
        """The loss under the campaign's threat model, and the network."""
        adversary = Adversary.under(InnerMaximisation(eps=self.params.eps), context.threat)
        image = torch.zeros(context.input_shape, device=context.device)
        yield FreeRecipe(adversary, context.threat, self.params, image), student
