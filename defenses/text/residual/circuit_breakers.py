"""Circuit breakers: the inside of a harmful answer is turned away from what it was, everything else is kept.

    broken = mean over tokens of harmful answers of  max(0, cos(h_w, h_0))     behind the blocks at ``depths``
    kept   = mean over tokens of harmless conversations and of refusals of  ||h_w - h_0||_2     behind every block
    min_w    alpha * (1 - n / 2N) * broken + alpha * n / 2N * kept     in step n of N, h_0 those of the model before

Good against whatever begins a harmful answer, a prefilled beginning included: not the request is recognised, but the
answer while it is written. What comes out then is no refusal, so a judge of refusals alone takes it for compliance:
look at one of answers. The first gradient is 0 but for rounding, since both models are the same then, so that two
devices begin in different directions. Its control is ``broken: false``, the model tuned to stay itself.

Source: Zou et al.: Improving alignment and robustness with circuit breakers (NeurIPS 2024), algorithm 1
(representation rerouting), alpha = 10, two layers at about a third and two thirds of the depth, 150 steps, and
refusals among what is kept: as others' code has them, the authors' not being at hand. They train LoRA of rank 16 at
1e-4; here all weights are tuned, unless ``lora`` is given, and only the answers' tokens of harmful conversations are
turned away, which is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from robustkd.contracts import FitContext, Prompts
from robustkd.contracts.json_value import JsonObject
from robustkd.defenses.text.text_defense import TextDefense
from robustkd.defenses.text.training import (
    Conversations,
    TuneParams,
    finished,
    forbidden,
    harmless_conversations,
    held_out,
    tune,
)
from robustkd.lazy import F, torch
from robustkd.targets import frozen
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.residual_streams import streams

if TYPE_CHECKING:
    from torch import Tensor


class CircuitBreakersParams(TuneParams):
    steps: int = Field(150, ge=1, description="N, updates of the weights")
    batch_size: int = Field(32, ge=2, description="conversations in each step, half of them harmful ones")
    alpha: float = Field(10.0, gt=0, description="weight of both losses together")
    depths: tuple[float, ...] = Field(
        (0.33, 0.66), min_length=1, description="behind which blocks harmful answers are turned away, as shares of the depth"
    )
    broken: bool = Field(True, description="whether they are turned away at all; false: the control")


class CircuitBreakers(TextDefense):
    """A language model whose streams leave their ways on harmful answers."""

    Params = CircuitBreakersParams
    source = "Zou et al. 2024, arXiv:2406.04313"

    def fit(self, context: FitContext[Prompts]) -> CausalLMTarget:
        """Tune a copy of the model.

        Raises:
            DataError: the training data have nothing to refuse, or nothing to answer.
        """
        base = finished(context, self.params.model)
        with frozen(base.module):
            loss = Rerouting(context, base, self.params)
            return tune(context, loss, self.params, name="train", measure=held_out(context, base), memory=loss)


class Rerouting:
    """What is minimised, a ``TextLoss``, and the number of steps so far, a ``Memory``.

    Args:
        context: the data.
        base: the model before, frozen by the caller.
        params: the losses.
    """

    def __init__(self, context: FitContext[Prompts], base: CausalLMTarget, params: CircuitBreakersParams) -> None:
        self._base, self._params, self._done = base, params, 0
        rows = forbidden(context.train)
        self._harmful = Conversations.of(base, rows["prompt"], rows["response"])
        self._refusals = Conversations.of(base, rows["prompt"], rows["refusal"])
        self._harmless = harmless_conversations(context, base, params)

    def __call__(self, target: CausalLMTarget, generator: torch.Generator) -> Tensor:
        """The loss of a step."""
        p, part = self._params, self._done / (2 * self._params.steps)
        self._done += 1
        half = p.batch_size // 2
        refused = half // 2
        kept = self._refusals.take(self._refusals.draw(refused, generator))
        batch = target.batch(kept + self._harmless.take(self._harmless.draw(p.batch_size - half - refused, generator)))
        now, before = self._both(target, batch)
        value = p.alpha * part * (now - before).norm(dim=-1).transpose(1, 2)[batch.mask].mean()
        if not p.broken:
            return value
        batch = target.batch(self._harmful.take(self._harmful.draw(half, generator)))
        now, before = self._both(target, batch)
        last = now.shape[1] - 1
        places = sorted({min(last, max(1, round(depth * last))) for depth in p.depths})
        similar = F.cosine_similarity(now[:, places], before[:, places], dim=-1).transpose(1, 2)[batch.completion]
        return value + p.alpha * (1 - part) * similar.clamp_min(0).mean()

    def _both(self, target: CausalLMTarget, batch: Any) -> tuple[Tensor, Tensor]:
        """(B, L + 1, T, D) streams of the model as it is and as it was."""
        with torch.no_grad():
            before = streams(self._base, batch)
        return streams(target, batch), before

    def state_dict(self) -> JsonObject:
        """How many steps there were."""
        return {"done": self._done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self._done = int(state["done"])
