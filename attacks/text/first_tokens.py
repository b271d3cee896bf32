"""First tokens: the answer begins with a token that the model holds for likely and would not take, and the model goes on from it.

    p       <- the model's distribution of the answer's first token, behind the bare request
    for token in order of p, from the second:
        answer <- target(request, answer begun with the token);   stop if the judge says so

The first in order is what the model says anyway. A model that was taught to announce a refusal by a token of its own (a refusal token)
has the other announcement in second place; one that refuses in words has, somewhere below, a word with which it complies. Whoever runs
this reads the model's logits and writes the beginning of its answer: more than a user may do, and less than who changes weights. A
server that shows no log-probabilities, or goes on with no beginning, cannot be attacked so.

With ``uniform`` the tokens are drawn from all of the vocabulary: what breaks a request then is that the answer was begun at all.

Source: after the idea of Zhang et al.: Make them spill the beans! Coercive knowledge extraction from (production) LLMs (2023),
arXiv:2312.04782, which was not at hand: theirs also forces tokens at the beginnings of later sentences. Refusal tokens: Jain et al.:
Refusal tokens: a simple way to calibrate refusals in large language models (2024), arXiv:2412.06748 (abstract read): whoever serves
the model steers that token. To force the first token alone, the order and the control are this package's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import Field
from typing_extensions import override

from robustkd.contracts import Attempts, Params, PromptAttack, PromptBatch, Request, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import TooLong


class FirstTokensParams(Params):
    """How many tokens are tried, and whether they are the likely ones."""

    tokens: int = Field(20, ge=1, description="tokens tried for each request, an attempt for each")
    uniform: bool = Field(False, description="the control: tokens drawn from all of the vocabulary")


class FirstTokens(PromptAttack[CausalLMTarget]):
    """Beginnings of answers by the model's own logits, from the second most likely token."""

    Params = FirstTokensParams
    needs = PromptAttack.needs | {"prefill", "tokens", "log-probabilities"}
    space = "prefill"
    iterative = False
    source = "Zhang et al. 2023, arXiv:2312.04782"

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.control = self.params.uniform

    @override
    def most_attempts(self, allowed: int) -> int:
        return min(allowed, self.params.tokens)

    def search(
        self, target: CausalLMTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """One attempt for each token, and one forward pass for each request beside the answers; none with ``uniform``."""
        prompts, systems = batch.requests["prompt"], batch.requests.get("system")
        seeds = rng.bits(()).tolist()
        beginnings: dict[int, list[str]] = {}
        for row in attempts.open.tolist():
            try:
                order = self._order(target, prompts[row], systems[row], seeds[row])
            except TooLong as error:
                attempts.leave(torch.tensor([row]), error.message)
                continue
            if not self.params.uniform:
                attempts.spend(torch.tensor([row]), forwards=1)
            texts = dict.fromkeys(_texts(target, order))
            beginnings[row] = [text for text, _ in zip(texts, range(self.params.tokens), strict=False)]
        for number in range(max(map(len, beginnings.values()), default=0)):
            rows = [row for row in attempts.open.tolist() if number < len(beginnings.get(row, ()))]
            asked = [Request(prompts[row], prefill=beginnings[row][number]) for row in rows]
            attempts(torch.tensor(rows, dtype=torch.int64), asked)

    def _order(self, target: CausalLMTarget, prompt: str, system: str, seed: int) -> list[int]:
        """Tokens in the order in which they are tried."""
        if self.params.uniform:
            return np.random.default_rng(seed & (2**63 - 1)).permutation(len(target.tokenizer)).tolist()
        likely = target.first_token_logprobs(prompt, system)
        # So many that those without a text, and those of one text, may be left out.
        return likely.topk(min(len(likely), 4 * self.params.tokens + 16)).indices[1:].tolist()


def _texts(target: CausalLMTarget, tokens: list[int]) -> Iterator[str]:
    """What begins an answer, of each token that is a text; special ones are, but for those that end, fill or stand for nothing."""
    tokenizer = target.tokenizer
    silent = {target.chat.end_of_turn, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id}
    silent.add(tokenizer.unk_token_id)
    for token in tokens:
        if token in silent or token >= len(tokenizer):
            continue
        text = str(tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False))
        if text.strip() and "\ufffd" not in text:
            yield text
