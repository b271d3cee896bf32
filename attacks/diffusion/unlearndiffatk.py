"""UnlearnDiffAtk: tokens under which an unlearned model still sees what a picture of the concept shows.

    min_{p'} E_{t, noise} || noise - eps(z_t | p' + p) ||^2,     z_0 = a picture of the concept

Each added token is a distribution over the vocabulary. A step draws a token from each, takes the gradient straight through the draw

    g = hardtanh( E dL/de )          E the embeddings of all tokens, e that of the drawn one

and moves the distributions by Adam, with weight decay, and back onto the simplex. The noise levels are gone through in order,
from the least noise on, as many as there are attempts; after each the likeliest tokens are judged.

Good against models that unlearnt a concept's name. It needs a picture of the concept, and the model's weights. Its success is the
best of many attempts: read it beside ``random-prompt`` and ``seed-search``, which have as many.

Source: Zhang et al.: To generate or not? Safety-driven unlearned diffusion models are still easy to generate unsafe images
(ECCV 2024), section 4 and appendix A. The paper draws with torch's Adam; ours forgets old gradients sooner (``image.adam``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.diffusion.engine.denoising import LevelsParam
from robustkd.attacks.diffusion.engine.simplex import draw, project_to_simplex
from robustkd.attacks.diffusion.engine.token_search import DenoisingTokenAttack, Relaxation, TokenSearchParams
from robustkd.contracts import TargetRef
from robustkd.contracts.random import SampleRng
from robustkd.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor


class UnlearnDiffAtkParams(TokenSearchParams):
    """Parameters of ``unlearndiffatk``; the paper's, with its 5 tokens for nudity (3 for styles and objects)."""

    lr: float = Field(0.01, gt=0, description="Adam's, of the weights of tokens")
    weight_decay: float = Field(0.1, ge=0, description="added to the gradient: this share of the weights")
    timesteps: int = Field(1, ge=1, description="noise levels in each step")
    levels: LevelsParam = "all"
    original: TargetRef | None = Field(None, description="a defense whose model draws the pictures, where the data have none")


class Distributions(Relaxation):
    """Tokens as points of the simplex over those of ``table``."""

    def start(self, rng: SampleRng, count: int) -> Tensor:
        """The (N, count, A) uniform distributions over the tokens."""
        size = len(self.table)
        return torch.full((len(rng.index), count, size), 1 / size, device=self.table.device)

    def tokens(self, x: Tensor, rng: SampleRng) -> Tensor:
        """(B, count) int64, one token drawn from each distribution."""
        return draw(x, rng.uniform(x.shape[1:2]).to(x))

    def likeliest(self, x: Tensor) -> Tensor:
        """(B, count) int64, the most probable token of each distribution."""
        return x.argmax(-1)

    def vjp(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Straight through the draw, and with weight decay."""
        return F.hardtanh(gradient @ self.table.T) + self.weight_decay * x

    def update(self, x: Tensor, direction: Tensor) -> Tensor:
        """A step, and back onto the simplex."""
        return project_to_simplex(x - self.lr * direction)


class UnlearnDiffAtk(DenoisingTokenAttack):
    """Tokens, found by gradients, that bring an unlearnt concept back."""

    Params = UnlearnDiffAtkParams
    source = "Zhang et al. 2024, arXiv:2310.11868"

    @override
    def relaxation(self, table: Tensor) -> Relaxation:
        return Distributions(table, self.params.lr, self.params.weight_decay)
