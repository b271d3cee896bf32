"""GUARD: geometric regularisation for robust dataset distillation. SRe2L's inversion of a network whose loss is flat around each image.

    squeeze:  min_theta  CE(f(x), y) + lambda * || grad_x l(x + h z) - grad_x l(x) ||,      z = grad_x l(x) / || grad_x l(x) ||
    recover:  as in SRe2L, from that network

The first term of a robust loss is clean; what is left is bounded by the curvature of the loss, which the second term takes away. Unlike
adversarial training it costs two more gradients a step.

From the authors: the term, with the network in evaluation mode, and that the rest is SRe2L's. Their lambda of 100 is on the gradient of a
mean over 128 images, which is 0.8 of an image's own, and their h of 3 is in pixels divided by a deviation of 0.2, which is 0.6 here. From
us: the crops' fixed smallest share, pixels in [0, 1], and that the network is trained by this platform's loop (its epoch is chosen by clean
validation accuracy).

Control: ``weight: 0``, the same inversion of a network without the term, and ``random-subset``.

Source: Xue et al.: Towards adversarially robust dataset distillation by curvature regularization (AAAI 2025), arXiv:2403.10045; settings as
in the authors' code. The term is that of CURE (Moosavi-Dezfooli et al. 2019, arXiv:1811.09716) with another direction.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from robustkd.condensers.engine.inversion import InversionParams, inverted
from robustkd.contracts import Arrays, Condenser, FitContext, ModelName, Params
from robustkd.contracts.params import ModelParams
from robustkd.defenses.training.batches import Minibatch
from robustkd.defenses.training.epochs import train
from robustkd.defenses.training.networks import fresh_network
from robustkd.defenses.training.params import NetworkParams
from robustkd.defenses.training.recipe import Recipe
from robustkd.lazy import F, torch
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class SqueezeParams(NetworkParams):
    """How the network is trained that is inverted."""

    model: ModelName = Field("convnet", description="the architecture, with BatchNorm")
    model_params: ModelParams = Field(default_factory=lambda: {"norm": "batch"})


class GUARDParams(InversionParams):
    squeeze: SqueezeParams = Field(default_factory=SqueezeParams, description="how the network is trained that is inverted")
    weight: float = Field(0.8, ge=0, description="lambda, of the curvature; 0 for a network without the term")
    h: float = Field(0.6, gt=0, description="how far along the normalised gradient the second gradient is taken, in l2")


class CurvatureRecipe(Recipe[ClassifierTarget]):
    """Cross entropy, and how much its gradient changes along itself."""

    def __init__(self, weight: float, h: float) -> None:
        self.weight, self.h = weight, h

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """CE(f(x), y) + weight * the change of the gradient, mean over the batch."""
        loss = batch.cross_entropy(target(batch.x))
        if not self.weight:
            return loss, {}
        target.module.eval()
        change = curvature(target, batch.x, batch.goal, self.h).mean()
        target.module.train()
        return loss + self.weight * change, {"curvature": change}


def curvature(target: ClassifierTarget, x: Tensor, goal: Tensor, h: float) -> Tensor:
    """(B,) || grad l(x + h z) - grad l(x) || with z the normalised gradient at x; differentiable in the weights.

    Args:
        x: (B, C, H, W).
        goal: labels or distributions.
    """

    def slope(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(target(at), goal, reduction="sum"), at, create_graph=True)
        return gradient

    here = slope(x)
    length = here.detach().flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (x.dim() - 1))
    change = (slope(x + h * here.detach() / length) - here).flatten(1).square().sum(1)
    return change.clamp_min(1e-20).sqrt()


class GUARD(Condenser):
    """Images that a network of a flat loss is inverted to."""

    Params: ClassVar[type[Params]] = GUARDParams
    source = "Xue et al. 2024, arXiv:2403.10045"

    def condense(self, context: FitContext[Arrays]) -> Arrays:
        """Train the network, and invert it."""
        p = self.params
        fresh = fresh_network(context, p.squeeze.model, p.squeeze.model_params, role="squeeze")
        inside = replace(context, checkpoints=context.checkpoints / "squeeze")
        network = train(inside, fresh, CurvatureRecipe(p.weight, p.h), p.squeeze)
        return inverted(context, network, p, lambda step: p.smallest_crop)
