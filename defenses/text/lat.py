"""LAT: latent adversarial training. As ``c-advul``, but what is moved are the residual streams of some blocks, not the embeddings.

    d*      = argmax log p_w(y_harm | residual streams + d),   ||d_token|| <= eps * mean norm of the stream there
    toward  = CE(y_safe | d*),    away = mean -log(1 - p_w(y_harm token | d*))
    min_w   toward_weight * toward + away_weight * away + utility_weight * CE(y | x)  on harmless requests

Good against what no input space names: an inner perturbation stands for many prompts, and reaches what the first blocks would
filter. At a large eps it asks for the impossible, since a stream can be moved to where another answer is said anyway.

Source: Sheshadri et al.: Latent adversarial training improves robustness to persistent harmful behaviors in LLMs (2024), section 3,
with four of 32 blocks, 16 steps and the loss -log(1 - p). The authors' eps is a length; ours is a share of the stream's own, so
that it means the same for every model and block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.text.engine.continuous import PGDConfig, VectorBall, maximize
from robustkd.contracts import FitContext, Prompts
from robustkd.defenses.text.adversarial import Adversary, Pair, Requests, UnlikelihoodTuning
from robustkd.defenses.text.inner import ContinuousParams, EmbeddingAdversary, InnerParams
from robustkd.lazy import F, nn, torch
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import TokenBatch
from robustkd.targets.residual_streams import Change, blocks_of, entering_unmoved, replacing

if TYPE_CHECKING:
    from torch import Tensor


class ResidualInnerParams(InnerParams):
    """How the residual streams to train on are found."""

    eps: float = Field(
        0.1,
        ge=0,
        description="how far each token's stream may be moved, relative to its mean norm there; 0: a control without an attack",
    )
    steps: int = Field(16, ge=1, description="steps for each example")
    depths: tuple[float, ...] = Field(
        (0.25, 0.5, 0.75, 0.94), min_length=1, description="before which blocks, as shares of the model's depth"
    )


class LATParams(ContinuousParams):
    inner: ResidualInnerParams = Field(default_factory=ResidualInnerParams, description="the attack that is trained against")
    toward_weight: float = Field(1.0, ge=0, description="weight of the refusal's loss")
    away_weight: float = Field(1.0, ge=0, description="weight of the withheld answer's loss")


class LAT(UnlikelihoodTuning):
    """Tuned toward refusals and away from answers under an attack on its residual streams."""

    Params = LATParams
    source = "Sheshadri et al. 2024, arXiv:2407.15549"

    def adversary(self, context: FitContext[Prompts], target: CausalLMTarget, requests: Requests) -> Adversary:
        """The attack on the residual streams."""
        return ResidualAdversary.under(target, requests, self.params)


class ResidualAdversary(EmbeddingAdversary):
    """Moves what enters some of the blocks, at the prompts' tokens."""

    inner: ResidualInnerParams

    def worst(self, target: CausalLMTarget, pair: Pair) -> Tensor:
        """(B, L, T, D) perturbations of what enters L blocks."""
        batch, blocks = pair.harmful, self._blocks(target)
        streams = entering_unmoved(target, batch, blocks)
        among = batch.prompt[:, None, :, None]
        unit = (streams.norm(dim=-1, keepdim=True) * among).sum(2, keepdim=True) / among.sum(2, keepdim=True)

        def likelihood(d: Tensor) -> Tensor:
            with replacing(blocks, _adding(d)):
                return target.completion_logprob(batch)

        p = self.inner
        ball = VectorBall(among, p.eps * unit, p.norm)
        how = PGDConfig(p.steps, p.step_size * p.eps * unit, p.direction)
        return maximize(target.module, likelihood, ball, torch.zeros_like(streams), how).d

    def logprobs_at(self, target: CausalLMTarget, batch: TokenBatch, worst: Tensor) -> Tensor:
        """(B, T) log-probabilities of the answers in ``batch`` with the residual streams moved by ``worst``."""
        with replacing(self._blocks(target), _adding(worst)):
            return target.token_logprobs(batch)

    def _blocks(self, target: CausalLMTarget) -> list[nn.Module]:
        every = blocks_of(target.module)
        return [every[place] for place in sorted({min(int(depth * len(every)), len(every) - 1) for depth in self.inner.depths})]


def _adding(d: Tensor) -> Change:
    def add(number: int, stream: Tensor) -> Tensor:
        fitted = F.pad(d[:, number], (0, 0, 0, stream.shape[1] - d.shape[2]))
        return (stream + fitted).to(stream.dtype)

    return add
