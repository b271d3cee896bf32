"""BEAST: a suffix grows by one token a step, out of what the model itself would say next.

    B_1     = { v : v drawn from p(. | before), `beams` of them without repetition }
    C_t     = { b + v : b in B_{t-1}, v drawn from p(. | before, b), `branches` of them without repetition },   t > 1
    B_t     = the `beams` elements of C_t with the lowest loss

It takes no gradient and two kinds of cheap passes, and since every token is one that the model finds likely, the suffix reads more
like text than those of ``gcg``: a filter of perplexity is of less use. Good as a fast attack; with the passes of ``gcg`` it does worse.

Source: Sadasivan et al.: Fast adversarial attacks on language models in one GPU minute (ICML 2024), arXiv:2402.15570, algorithm 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.text.engine.candidate_queue import CandidateQueue
from robustkd.attacks.text.engine.descent import SuffixParams
from robustkd.attacks.text.engine.slots import Slots, are_texts
from robustkd.attacks.text.engine.suffix import Suffixes
from robustkd.attacks.text.engine.target_prefix import REQUESTS, fitting, target_prefixes
from robustkd.attacks.text.engine.vocabulary import Vocabulary
from robustkd.contracts import Attempts, PromptAttack, PromptBatch, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.targets import frozen
from robustkd.targets.causal_lm import CausalLMTarget

if TYPE_CHECKING:
    from torch import Tensor


class BEASTParams(SuffixParams):
    """Parameters of ``beast``; the defaults are the paper's."""

    tokens: int = Field(40, ge=1, description="length of the suffix in the end, one token a step")
    beams: int = Field(15, ge=1, description="first tokens drawn, and suffixes kept from step to step (k1 of the paper)")
    branches: int = Field(15, ge=1, description="tokens drawn behind each of them (k2)")


class BEAST(PromptAttack[CausalLMTarget]):
    """Beam search for a suffix, by the model's own next words."""

    Params = BEASTParams
    needs = PromptAttack.needs | {"tokens", "log-probabilities"}
    source = "Sadasivan et al. 2024, arXiv:2402.15570"
    version = "3"  # 1 took the caches of sliding windows for whole; 2 drew `branches` first tokens

    def search(
        self, target: CausalLMTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """At most ``tokens * beams * (branches + 1)`` forward passes for each request.

        Raises:
            DataError: a request has no ``target``.
        """
        p, requests = self.params, batch.requests
        vocabulary, answers = Vocabulary.of(target, p.ascii), target_prefixes(requests)
        prompts, systems = [p.in_template(prompt) for prompt in requests["prompt"]], requests.get("system")
        everyone = fitting(target, requests, attempts, suffix=p.tokens, answers=answers, template=p.in_template)
        with frozen(target.module):
            for rows in everyone.split(REQUESTS):
                slots = Slots(target, *([column[row] for row in rows.tolist()] for column in (prompts, systems)))
                suffixes = Suffixes(slots, [answers[row] for row in rows.tolist()], rows, attempts)
                self._grow(suffixes, vocabulary, attempts, rng.select(rows))

    def _grow(self, suffixes: Suffixes, vocabulary: Vocabulary, attempts: Attempts, rng: SampleRng) -> None:
        p = self.params
        queue = CandidateQueue(attempts, p.tokens)
        places = torch.arange(len(suffixes.rows))
        beams = torch.zeros(len(places), 1, 0, dtype=torch.int64, device=suffixes.target.device)
        for t in range(p.tokens):
            standing = torch.isin(suffixes.rows[places], attempts.open)
            places, beams = places[standing], beams[standing]
            if not len(places):
                return
            likely = suffixes.next_logprobs(places, beams).masked_fill(~vocabulary.allowed, -torch.inf)
            drawn = draw(likely, p.branches if t else p.beams, rng.select(places).fork(t))
            grown = torch.cat([beams.unsqueeze(2).expand(-1, -1, drawn.shape[2], -1), drawn.unsqueeze(3)], 3).flatten(1, 2)
            texts = suffixes.slots.texts(places, grown)
            loss = suffixes.losses(places, grown, are_texts(texts))
            queue.offer_best(suffixes.rows[places], texts, loss, p.beams)
            best = loss.argsort(dim=1, stable=True)[:, : p.beams].to(grown.device)
            beams = grown.gather(1, best.unsqueeze(2).expand(-1, -1, t + 1))
            queue.step()


def draw(logprobs: Tensor, count: int, rng: SampleRng) -> Tensor:
    """(B, C, count) tokens drawn from (B, C, V) distributions without repetition, by the largest of log-probability + Gumbel noise."""
    found = []
    for row in range(len(logprobs)):  # one by one: noise for a large vocabulary is a lot
        noise = -torch.log(-torch.log(rng.select(torch.tensor([row])).uniform(logprobs.shape[1:])[0].clamp(1e-7, 1 - 1e-7)))
        found.append((logprobs[row] + noise).topk(min(count, logprobs.shape[2]), dim=1).indices)
    return torch.stack(found)
