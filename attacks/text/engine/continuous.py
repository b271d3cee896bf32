"""PGD on vectors inside a language model, for attacks and for adversarial training alike.

    d_0   = 0, or a random point of the ball
    d_t+1 = project(d_t + size * steepest(grad_d value(d_t)))

``d`` are perturbations of vectors: of the embeddings of tokens, or of the residual stream. Each vector has a ball of its own,
and each sample keeps the best of its iterates, not the last. The gradient is taken of ``d`` alone, with the network in
evaluation mode and without weight gradients: what an attack does must not leak into the weights of who trains on it.

Source: Schwinn et al.: Soft prompt threats (NeurIPS 2024), section 3; Xhonneux et al.: Efficient adversarial training in LLMs
with continuous attacks (NeurIPS 2024), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.targets import frozen
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import TokenBatch, Tokens

if TYPE_CHECKING:
    from torch import Tensor, nn

Norm = Literal["l2", "linf"]
Direction = Literal["sign", "gradient"]

Value: TypeAlias = "Callable[[Tensor], Tensor]"
"""``value(d)``: (B, .., D) perturbations -> (B,) values to maximize."""


@dataclass(frozen=True)
class VectorBall:
    """How far each vector may be moved.

    Attributes:
        moved: (B, .., 1) bool, which vectors may move at all.
        radius: (.., 1), broadcast over the vectors: the length of the longest perturbation. In ``linf`` each of the D
            coordinates may change by radius / sqrt(D), so that cube lies inside the ball of ``l2``. It may be infinite.
        norm: of one vector.
    """

    moved: Tensor
    radius: Tensor
    norm: Norm = "l2"

    def project(self, d: Tensor) -> Tensor:
        """(B, .., D) the nearest perturbations that are allowed."""
        d = d * self.moved
        if self.norm == "linf":
            side = self.radius / math.sqrt(d.shape[-1])
            return torch.clamp(d, -side, side)
        length = d.norm(dim=-1, keepdim=True)
        return d * torch.where(length > self.radius, self.radius / length.clamp_min(torch.finfo(d.dtype).tiny), 1.0)

    def random_point(self, rng: SampleRng, size: int) -> Tensor:
        """(B, .., size) uniform in each vector's ball, whatever padding the batch has; the radius must be finite."""
        shape = (*self.moved.shape[1:-1], size)
        if self.norm == "linf":
            return self.project(rng.uniform(shape, -1.0, 1.0) * self.radius / math.sqrt(size))
        direction = rng.normal(shape)
        share = rng.uniform((*shape[:-1], 1)) ** (1 / size)
        return self.project(direction / direction.norm(dim=-1, keepdim=True) * self.radius * share)


@dataclass(frozen=True)
class PGDConfig:
    """Number, length and direction of the steps.

    Attributes:
        steps: how many.
        size: (.., 1) broadcast over the vectors, the length of every vector's step.
        direction: the sign of its gradient, or the gradient itself.
    """

    steps: int
    size: Tensor
    direction: Direction = "sign"

    def step(self, gradient: Tensor) -> Tensor:
        """One step of (B, .., D) vectors; vectors without a gradient stay."""
        if self.direction == "sign":
            return self.size / math.sqrt(gradient.shape[-1]) * gradient.sign()
        length = gradient.norm(dim=-1, keepdim=True)
        return self.size * gradient / torch.where(length > 0, length, 1.0)


@dataclass(frozen=True)
class BestPerturbation:
    """The best point of each sample: ``d`` (B, .., D) without a graph, its ``value`` (B,), and the ``last`` point, as ``d``."""

    d: Tensor
    value: Tensor
    last: Tensor

    def select(self, rows: Tensor) -> BestPerturbation:
        """Those of some samples."""
        return BestPerturbation(self.d[rows], self.value[rows], self.last[rows])

    def or_earlier(self, earlier: BestPerturbation) -> BestPerturbation:
        """The better of both for each sample, and this one's last point."""
        better = (self.value > earlier.value).reshape(-1, *[1] * (self.d.dim() - 1))
        return BestPerturbation(torch.where(better, self.d, earlier.d), self.value.maximum(earlier.value), self.last)


def maximize(module: nn.Module, value: Value, ball: VectorBall, start: Tensor, how: PGDConfig) -> BestPerturbation:
    """Maximize ``value`` from ``start``: ``how.steps + 1`` forward and ``how.steps`` backward passes.

    Args:
        module: the network that ``value`` runs; it is left as found and no weight gets a gradient.
        value: of each sample on its own.
        ball: the constraint.
        start: (B, .., D) inside the ball.
        how: number, length and direction of the steps.
    """
    with frozen(module):
        d = best = start.detach()
        highest = torch.full((len(d),), -torch.inf, dtype=d.dtype, device=d.device)
        for t in range(how.steps + 1):
            last = t == how.steps
            with torch.set_grad_enabled(not last):
                d = d.detach().requires_grad_(not last)
                now = value(d)
                total = now.sum()
            better = now.detach() > highest
            best = torch.where(better.reshape(-1, *[1] * (d.dim() - 1)), d.detach(), best)
            highest = torch.where(better, now.detach().to(highest.dtype), highest)
            if not last:
                (gradient,) = torch.autograd.grad(total, d)
                d = ball.project(d.detach() + how.step(gradient))
    return BestPerturbation(best, highest, d.detach())


@dataclass(frozen=True)
class EmbeddingPGD:
    """PGD on the embeddings of tokens; lengths are relative to the mean norm of a token's embedding.

    Attributes:
        eps: radius of each token's ball.
        steps, step_size, direction: see ``PGDConfig``.
        norm: of the ball.
    """

    eps: float
    steps: int
    step_size: float
    norm: Norm = "l2"
    direction: Direction = "sign"

    def __call__(
        self,
        target: CausalLMTarget,
        batch: TokenBatch,
        moved: Tensor,
        rng: SampleRng | None = None,
        start: Tensor | None = None,
    ) -> BestPerturbation:
        """Perturbations (B, T, D) of the embedded ``batch`` that make its completions as likely as they can.

        Args:
            target: whose completions.
            batch: conversations with a completion each.
            moved: (B, T) bool, the tokens whose embeddings may be moved.
            rng: of a random start; None starts at the embeddings themselves.
            start: (B, T, D) perturbations of this ball to begin with instead.
        """
        with torch.no_grad():
            clean = target.embed(batch.ids)
        unit = torch.full((1, 1, 1), target.embedding_norm, device=clean.device)
        ball = VectorBall(moved.unsqueeze(-1), self.eps * unit, self.norm)
        if start is None:
            start = torch.zeros_like(clean, dtype=torch.float32) if rng is None else ball.random_point(rng, clean.shape[-1])

        def likelihood(d: Tensor) -> Tensor:
            return target.completion_logprob(batch, (clean + d).to(clean.dtype))

        return maximize(target.module, likelihood, ball, start, PGDConfig(self.steps, self.step_size * unit, self.direction))


def with_suffix(tokens: Tokens, ids: Sequence[int]) -> Tokens:
    """``tokens`` with ``ids`` at the end of the user's text."""
    end, more = tokens.prompt.stop, len(ids)
    answer = slice(tokens.completion.start + more, tokens.completion.stop + more)
    return Tokens([*tokens.ids[:end], *ids, *tokens.ids[end:]], slice(tokens.prompt.start, end + more), answer)


def last_of(moved: Tensor, count: int) -> Tensor:
    """(B, T) bool, the last ``count`` of each row's tokens in the mask ``moved``."""
    left = moved.flip(1).cumsum(1).flip(1)
    return moved & (left <= count)
