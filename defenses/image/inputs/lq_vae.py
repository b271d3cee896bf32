"""LQ-VAE: a filter in front of a classifier, trained without looking at it.

    min   KL(q(z|x) || N(0, I)) / bits + 10 MSE(soft) + 10 MSE(hard) + 10 mean (0.1 - || d sum(mu) / dx ||)^2

MSE is that of the image drawn from soft and from hard bits, on pixels in [-1, 1]. The hard bits pass no gradient, so their decoder
learns by itself, and the encoder from the soft ones. The classifier's weights are not touched. The paper's own adaptive attack was a
single step of FGSM: attack it with ``bpda``.

Good as a masking control. What it rounds off hides the gradient; behind it stands a classifier as weak as before.

Source: Kyatham et al.: Variational inference with latent space quantization for adversarial resilience (2019), arXiv:1903.09940;
losses and weights as in the authors' code, whose RMSProp and learning-rate decay are the common loop's Adam here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from robustkd.contracts import FitContext, Target
from robustkd.defenses.image.inputs.in_front import TrainedInFront, TrainedInFrontParams
from robustkd.defenses.training import Minibatch, Recipe
from robustkd.defenses.training.params import EpochsParam, LRParam, ScheduleParam
from robustkd.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHT, _SLOPE = 10.0, 0.1


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)), mean over the batch and the latents."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).mean()


def flatness(mean: Tensor, inputs: Tensor) -> Tensor:
    """mean_i (0.1 - || d sum(mu_i) / dx_i ||)^2, with a graph."""
    (slope,) = torch.autograd.grad(mean.sum(), inputs, create_graph=True)
    return (_SLOPE - slope.flatten(1).norm(dim=1)).square().mean()


class LQVAERecipe(Recipe):
    """The loss of the filter: divergence, reconstruction (soft and hard) and the gradient penalty."""

    def loss(self, target: Any, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """KL + 10 (MSE(soft) + MSE(hard) + penalty)."""
        vae = target.module.transforms[0]
        x = (2 * batch.x - 1).requires_grad_()
        hidden = vae.encoder(x)
        mean, log_variance = vae.mean(hidden), vae.log_variance(hidden)
        noise = batch.rng("latent").normal(mean.shape[1:], dtype=mean.dtype)
        z = mean + vae.bits.threshold / 2 * (log_variance / 2).exp() * noise
        soft = F.mse_loss(vae.soft_decoder(vae.bits.surrogate(z)), x.detach())
        hard = F.mse_loss(vae.decoder(vae.bits(z.detach())), x.detach())
        kl, penalty = divergence(mean, log_variance), flatness(mean, x)
        loss = kl + _WEIGHT * (soft + hard + penalty)
        return loss, {"divergence": kl, "error_soft": soft, "error_hard": hard, "penalty": penalty}


class LQVAEParams(TrainedInFrontParams):
    bits: int = Field(64, ge=1, description="bits that are left of an image")
    width: int = Field(64, ge=1, description="channels of the filter's first layer")
    threshold: float = Field(0.1, gt=0, description="tau: a bit is 1 where the latent lies within tau of 0")
    epochs: EpochsParam = 13
    lr: LRParam = 3e-4
    schedule: ScheduleParam = "constant"


class LQVAE(TrainedInFront):
    """A model of the campaign behind a filter of a few bits."""

    Params = LQVAEParams
    source = "Kyatham et al. 2019, arXiv:1903.09940"

    def fit(self, context: FitContext) -> Target:
        """Train the filter; of its epochs the one is kept after which the model classifies the drawn validation images best.

        Raises:
            UsageError: the base is no classifier of images.
        """
        p = self.params
        stage = {"kind": "lq-vae", "bits": p.bits, "width": p.width, "threshold": p.threshold}
        return self.fit_stage(context, stage, LQVAERecipe(), name="filter")
