"""C-AdvUL: unlearn what an attack in embedding space brings out, and answer safely there.

    d*      = the embeddings' worst move for (x, y_harm)                       (defenses/text/inner.py)
    toward  = CE(y_safe | x + d*),   below 0.5 replaced by 0.5 + 0.001 * CE
    away    = -CE(y_harm | x + d*),  below -5 replaced by -5 - 0.001 * CE
    min_w   0.5 * toward + 0.5 * away + utility_weight * CE(y | x)  on harmless requests

Good where attacks on the text are too slow to train against: ten steps on the embeddings cost less than one step of GCG. Whether
it withstands such attacks is to be measured: at a small eps it may not, and its losses alone (``inner: {eps: 0}``, the control)
can explain much of what it gains. Too much of it, and harmless requests are refused. Mind the cut-off of ``toward``: it is about
the mean over a refusal's tokens, all but the first of which follow by themselves, so that below 0.5 a model may still answer. Where
eps is too large to withstand, nothing then leads back: a small model gave up refusing at all. There use a small one, such as 0.02.

Source: Xhonneux et al.: Efficient adversarial training in LLMs with continuous attacks (NeurIPS 2024), equation 4; the cut-offs,
the weights and the shares of harmful and harmless requests are those of the authors' code. The schedule is not: that code trains LoRA
(rank 64, alpha 16, dropout 0.1) for 5 epochs in batches of 64, at a rate of 2e-4 with gradients clipped to 0.3, and its attack takes
ten sign steps of 1e-4 at eps 0.05. Here all weights are tuned for 1,000 steps in batches of 32, at 1e-4 clipped to 1.0, and a step is a
quarter of eps along each token's normalised gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.defenses.text.adversarial import Outer, Pair, Requests
from robustkd.defenses.text.inner import ContinuousParams, EmbeddingTuning
from robustkd.defenses.text.losses import away, toward
from robustkd.targets.causal_lm import CausalLMTarget

if TYPE_CHECKING:
    from torch import Tensor


class CAdvULParams(ContinuousParams):
    toward_weight: float = Field(0.5, ge=0, description="weight of the refusal's loss")
    away_weight: float = Field(0.5, ge=0, description="weight of the withheld answer's loss")
    toward_cut_off: float = Field(0.5, ge=0, description="a refusal's loss below it is good enough")
    away_cut_off: float = Field(-5.0, le=0, description="a withheld answer's loss below it is good enough")


class CAdvUL(EmbeddingTuning):
    """Tuned toward refusals and away from answers under an attack on its embeddings."""

    Params = CAdvULParams
    source = "Xhonneux et al. 2024, arXiv:2405.15589"
    version = "2"  # 1 took the table's norms for a unit, which Gemma scales

    def outer(self, target: CausalLMTarget, requests: Requests) -> Outer:
        """The loss: toward the refusal, away from the answer to withhold."""
        p = self.params

        def losses(pair: Pair, safe: Tensor, harmful: Tensor) -> Tensor:
            to_safe = toward(safe, pair.safe.completion, p.toward_cut_off)
            from_harmful = away(harmful, pair.harmful.completion, p.away_cut_off)
            return p.toward_weight * to_safe + p.away_weight * from_harmful

        return losses
