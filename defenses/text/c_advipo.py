"""C-AdvIPO: prefer the safe answer under an attack in embedding space, by as much as beta asks and no more.

    d*      = the embeddings' worst move for (x, y_harm)                       (defenses/text/inner.py)
    h       = [log p_w(y_safe | x + d*) - log p_0(y_safe | x)] - [log p_w(y_harm | x + d*) - log p_0(y_harm | x)]
    min_w   (h - 1 / (2 beta))^2 + utility_weight * CE(y | x)  on harmless requests

with mean log-probabilities of a token, and p_0 the model before the training, which sees the clean prompt: without random words and not
moved. The authors train without harmless data; where the model forgets how to be useful, give ``utility_weight``.

Good where there are pairs of answers and no wish to push one of them down without end. What it costs and what it may not hold
against are as for ``c-advul``; its control is ``inner: {eps: 0}`` as well. (The authors' code drops tokens below -5 from the mean, so
that its loss is not monotone; here all count.)

Source: Xhonneux et al.: Efficient adversarial training in LLMs with continuous attacks (NeurIPS 2024), equation 6; beta 0.25 is
that of the authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.defenses.text.adversarial import Outer, Pair, Requests
from robustkd.defenses.text.inner import ContinuousParams, EmbeddingTuning
from robustkd.defenses.text.losses import completion_mean, ipo
from robustkd.defenses.text.training import Conversations
from robustkd.lazy import torch
from robustkd.targets import frozen
from robustkd.targets.causal_lm import CausalLMTarget

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 64


class CAdvIPOParams(ContinuousParams):
    share: float = Field(1.0, gt=0, le=1, description="of a step's conversations, those about forbidden requests")
    utility_weight: float = Field(0.0, ge=0, description="weight of the harmless requests' loss; at 0 they are left out")
    beta: float = Field(0.25, gt=0, description="the smaller, the more the refusal is to be preferred")


class CAdvIPO(EmbeddingTuning):
    """Tuned to prefer refusals under an attack on its embeddings."""

    Params = CAdvIPOParams
    source = "Xhonneux et al. 2024, arXiv:2405.15589"
    version = "2"  # 1 took the table's norms for a unit, which Gemma scales

    def outer(self, target: CausalLMTarget, requests: Requests) -> Outer:
        """IPO, with what the model says of the clean prompts now for the reference."""
        safe_before, harmful_before = answer_logprobs(target, requests.safe), answer_logprobs(target, requests.harmful)

        def losses(pair: Pair, safe: Tensor, harmful: Tensor) -> Tensor:
            return ipo(
                completion_mean(safe, pair.safe.completion),
                completion_mean(harmful, pair.harmful.completion),
                safe_before[pair.rows.to(safe.device)],
                harmful_before[pair.rows.to(safe.device)],
                self.params.beta,
            )

        return losses


def answer_logprobs(target: CausalLMTarget, conversations: Conversations) -> Tensor:
    """(N,) mean log-probability of each conversation's answer, without a graph; the target is left as found."""
    with frozen(target.module), torch.no_grad():
        parts = [conversations.items[first : first + _ROWS] for first in range(0, len(conversations), _ROWS)]
        return torch.cat([target.completion_logprob(target.batch(part)) for part in parts])
