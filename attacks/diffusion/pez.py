"""PEZ: free embeddings, and the gradient at the tokens that are nearest to them.

    v = nearest tokens (cosine)      g = dL/dv      x <- x - lr * ( Adam(g) + weight_decay * x )

On what goes down in UnlearnDiffAtk, so the two differ in how tokens are relaxed and in nothing else. (The authors' goal is another:
texts that CLIP holds similar to a picture.)

Source: Wen et al.: Hard prompts made easy (NeurIPS 2023), algorithm 1; learning rate and weight decay of its code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.diffusion.engine.denoising import LevelsParam
from robustkd.attacks.diffusion.engine.token_search import DenoisingTokenAttack, Relaxation, TokenSearchParams
from robustkd.contracts import TargetRef
from robustkd.contracts.random import SampleRng
from robustkd.lazy import F

if TYPE_CHECKING:
    from torch import Tensor


class NearestParams(TokenSearchParams):
    """Parameters of searches among free embeddings."""

    lr: float = Field(0.1, gt=0, description="Adam's, of the embeddings")
    weight_decay: float = Field(0.1, ge=0, description="decoupled from the gradient (AdamW)")


class DenoisingParams(NearestParams):
    """Those that look at noisy pictures."""

    timesteps: int = Field(1, ge=1, description="noise levels in each step")
    levels: LevelsParam = "all"


class PEZParams(DenoisingParams):
    """The settings of the search among free embeddings, and the model that draws missing pictures."""

    original: TargetRef | None = Field(None, description="a defense whose model draws the pictures, where the data have none")


class Nearest(Relaxation):
    """Tokens as free points among the embeddings of ``table``."""

    def start(self, rng: SampleRng, count: int) -> Tensor:
        """The (N, count, E) embeddings of random tokens."""
        return self.table[rng.integers((count,), len(self.table)).to(self.table.device)]

    def tokens(self, x: Tensor, rng: SampleRng) -> Tensor:
        """(B, count) int64, the tokens nearest to ``x`` by cosine."""
        return self.likeliest(x)

    def likeliest(self, x: Tensor) -> Tensor:
        """(B, count) int64, the tokens nearest to ``x`` by cosine."""
        return (F.normalize(x, dim=-1) @ F.normalize(self.table, dim=-1).T).argmax(-1)

    def vjp(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The gradient itself, as if the nearest token were where ``x`` is."""
        return gradient

    def update(self, x: Tensor, direction: Tensor) -> Tensor:
        """Return ``x`` after a step of AdamW: its weight decay is decoupled."""
        return x - self.lr * (direction + self.weight_decay * x)


class PEZ(DenoisingTokenAttack):
    """Hard prompts made easy, on the denoising error."""

    Params = PEZParams
    source = "Wen et al. 2023, arXiv:2302.03668"

    @override
    def relaxation(self, table: Tensor) -> Relaxation:
        return Nearest(table, self.params.lr, self.params.weight_decay)
