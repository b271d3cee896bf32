"""ReFAT: refusals are learnt while the direction of refusing is taken out of the residual streams.

    r_l = mean of h_l(forbidden) - mean of h_l(harmless)   at the end of the request, length 1, anew every ``every`` steps
    h_l <- h_l - r_l r_l^T h_l   for forbidden requests, before every block, in a share ``removal_rate`` of the steps
    min_w  refusal-sft's loss

Good against attacks that work by that direction, ``refusal-ablation`` first of all. Its control is ``removal_rate:
0``, which is ``refusal-sft``.

Source: Yu et al.: Robust LLM safeguarding via refusal feature adversarial training (ICLR 2025), as others describe
it. Which layers, the rate 0.5 and the 20 steps are ours, since their values were not at hand, and so is that the
direction is taken from the last token before the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import FitContext, Prompts
from robustkd.contracts.json_value import JsonObject
from robustkd.defenses.text.refusal_sft import RefusalLoss, RefusalSFT, RefusalSFTParams
from robustkd.defenses.text.training import cross_entropy, forbidden, harmless
from robustkd.lazy import F, torch
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import TokenBatch, Tokens
from robustkd.targets.residual_streams import blocks_of, entering_unmoved, replacing

if TYPE_CHECKING:
    from torch import Tensor


class ReFATParams(RefusalSFTParams):
    removal_rate: float = Field(
        0.5, ge=0, le=1, description="share of the steps in which the direction is taken out; 0: the control"
    )
    every: int = Field(20, ge=1, description="steps after which the direction is found anew")
    requests: int = Field(32, ge=1, description="requests of each kind that it is found by")


class ReFAT(RefusalSFT):
    """A language model fine-tuned to refuse without its direction of refusing."""

    Params = ReFATParams
    source = "Yu et al. 2024, arXiv:2409.20089"

    @override
    def loss(self, context: FitContext[Prompts], start: CausalLMTarget) -> RefusalLoss:
        return WithoutRefusalDirection(context, start, self.params)


class WithoutRefusalDirection(RefusalLoss):
    """The loss, with the direction taken out, and the direction, a ``Memory``."""

    def __init__(self, context: FitContext[Prompts], start: CausalLMTarget, params: ReFATParams) -> None:
        super().__init__(context, start, params)
        self._rate, self._every, self._updates = params.removal_rate, params.every, 0
        kinds = (forbidden(context.train)["prompt"], harmless(context.train)["prompt"])
        self._asked = [[start.encode(prompt) for prompt in prompts] for prompts in kinds]
        self._requests = params.requests
        self.directions: Tensor | None = None
        self.memory = self

    @override
    def of(self, target: CausalLMTarget, batch: TokenBatch, refused: int, generator: torch.Generator) -> Tensor:
        """The mean over all answers' tokens; the first ``refused`` rows are forbidden requests."""
        if not self._rate:
            return cross_entropy(target, batch)
        if self.directions is None or self._updates % self._every == 0:
            drawn = [
                [items[place] for place in torch.randint(len(items), (self._requests,), generator=generator)]
                for items in self._asked
            ]
            self.directions = refusal_directions(target, *drawn)
        self._updates += 1
        if torch.rand((), generator=generator) >= self._rate:
            return cross_entropy(target, batch)
        directions = self.directions.to(target.device)

        def without(number: int, stream: Tensor) -> Tensor:
            r = directions[number].to(stream.dtype)
            harmful = stream[:refused]
            return torch.cat([harmful - (harmful @ r).unsqueeze(-1) * r, stream[refused:]])

        with replacing(blocks_of(target.module), without):
            return cross_entropy(target, batch)

    def state_dict(self) -> JsonObject:
        """The directions, and how many updates there were."""
        return {"directions": None if self.directions is None else self.directions.tolist(), "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        found = state["directions"]
        self.directions, self._updates = None if found is None else torch.tensor(found), int(state["updates"])


def refusal_directions(target: CausalLMTarget, forbidden: Sequence[Tokens], harmless: Sequence[Tokens]) -> Tensor:
    """(L, D) unit directions, on the CPU: of each block, from harmless to forbidden requests, at the last token before the answer.

    Before the first block that token is the same of all requests, so there is no direction there, and nothing is taken out.
    """
    means = []
    for items in (forbidden, harmless):
        batch = target.batch(items)
        seen = entering_unmoved(target, batch, blocks_of(target.module))
        last = batch.mask.sum(1) - 1
        means.append(seen[torch.arange(len(items), device=seen.device), :, last].mean(0))
    rounding = 1e-4 * float(means[1].norm(dim=1).mean())
    return F.normalize(means[0] - means[1], dim=1, eps=rounding).cpu()
