"""Embedding attack: gradient ascent on what the prompt is embedded to.

    max_d log p(beginning of the answer | embedded prompt + d),   ||d_token|| <= eps * mean embedding norm

It moves the embeddings of the whole prompt, or those of some tokens appended to it. What it finds corresponds to no text: it
bounds what an attacker with the weights can do, and it is what continuous adversarial training trains against, so whether
that carries over must be asked of attacks on the text (``gcg``, ``random-search``). At a large eps one ascent ends in a poor
place: it is repeated from random starts, and at several eps.

Source: Schwinn et al.: Soft prompt threats (NeurIPS 2024), equation 1; eps relative to the mean embedding norm as in Xhonneux
et al. 2024, section 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from robustkd.attacks.text.engine.continuous import Direction, EmbeddingPGD, Norm, last_of, with_suffix
from robustkd.attacks.text.engine.target_prefix import fitting, target_prefixes
from robustkd.attacks.text.engine.vocabulary import Vocabulary
from robustkd.contracts import Attempts, EmbeddingRadius, Params, PromptAttack, PromptBatch, Request, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.memory import in_memory

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 32
"""Requests that are attacked side by side."""


class EmbeddingParams(Params):
    """The radii of the balls around the tokens, and the steps and restarts of PGD in them."""

    eps: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.1, 0.5, 1.0),
        min_length=1,
        description="how far each token may be moved, relative to the mean embedding norm; each is tried",
    )
    norm: Norm = Field("l2", description="of one token's perturbation; linf: the cube inside that ball")
    slots: int = Field(0, ge=0, description="tokens appended to the prompt, which alone are moved; 0: the prompt's own are")
    steps: int = Field(50, ge=1, description="steps of each ascent")
    step_size: float = Field(0.1, gt=0, description="length of every token's step, relative to eps")
    direction: Direction = Field("sign", description="step along the sign of the gradient, or along the gradient")
    restarts: int = Field(2, ge=1, description="ascents at each eps; the first begins at the prompt, others at random points")


class Embedding(PromptAttack[CausalLMTarget]):
    """Ascent in embedding space inside a ball around each token."""

    Params = EmbeddingParams
    needs = PromptAttack.needs | {"tokens", "embeddings", "log-probabilities"}
    gradients = True
    space = "embeddings"
    source = "Schwinn et al. 2024, arXiv:2402.09063"
    version = "2"  # 1 took the table's norms for a unit, which Gemma scales

    def threat_for(self, threat: ThreatModel) -> ThreatModel:
        """Results are judged under the largest eps of the parameters."""
        p = self.params
        return ThreatModel(budget=EmbeddingRadius(max(p.eps), threat.attempts, p.norm))

    def search(
        self, target: CausalLMTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """One attempt after each ascent, from the smallest eps to the largest: ``steps + 1`` forward passes, ``steps`` backward.

        Raises:
            DataError: a request has no ``target``.
        """
        p = self.params
        words = Vocabulary.of(target).words
        for eps in sorted(p.eps):
            pgd = EmbeddingPGD(eps, p.steps, p.step_size * eps, p.norm, p.direction)
            for restart in range(p.restarts):
                draws = rng.fork(f"{eps}/{restart}")
                attempt_with_ascent(
                    pgd, target, batch, attempts, words, p.slots, draws.fork("slots"), draws if restart else None
                )


def attempt_with_ascent(
    pgd: EmbeddingPGD,
    target: CausalLMTarget,
    batch: PromptBatch,
    attempts: Attempts,
    words: Tensor,
    slots: int,
    suffixes: SampleRng,
    starts: SampleRng | None,
) -> None:
    """One attempt for every open request, after one ascent.

    Args:
        words: the tokens of which ``slots`` are drawn by ``suffixes`` and appended.
        starts: draws where the ascents begin; None: at the tokens themselves.
    """

    def ask(rows: Tensor) -> None:
        suffix = words[suffixes.select(rows).integers((slots,), len(words))]
        asked = maximized_requests(pgd, target, batch, rows, suffix, starts.select(rows) if starts else None)
        attempts.spend(rows, forwards=pgd.steps + 1, backwards=pgd.steps)
        attempts(rows, asked)

    rows = fitting(target, batch.requests, attempts, suffix=slots, answers=target_prefixes(batch.requests))
    in_memory(ask, rows, ROWS)


def maximized_requests(
    pgd: EmbeddingPGD, target: CausalLMTarget, batch: PromptBatch, rows: Tensor, suffix: Tensor, rng: SampleRng | None
) -> list[Request]:
    """Requests with the embeddings that make the beginnings of their answers as likely as they can.

    Args:
        pgd: the ascent.
        target: who is asked.
        batch: the requests; their column ``target`` is the beginning of the answer that is aimed at.
        rows: (A,) which of them.
        suffix: (A, S) ids of tokens appended to the prompts, which alone are moved; without any the prompts' own are.
        rng: of a random start; None starts at the tokens themselves.
    """
    requests = batch.requests
    prompts, answers, systems = (
        [column[row] for row in rows.tolist()]
        for column in (requests["prompt"], target_prefixes(requests), requests.get("system"))
    )
    laid = [
        with_suffix(target.encode(prompt, answer, ends=False, system=system), ids)
        for prompt, answer, system, ids in zip(prompts, answers, systems, suffix.tolist(), strict=True)
    ]
    tokens = target.batch(laid)
    found = pgd(target, tokens, last_of(tokens.prompt, suffix.shape[1]) if suffix.shape[1] else tokens.prompt, rng)
    embedded = target.embed(tokens.ids).detach()
    embedded = (embedded + found.d).to(embedded.dtype)
    spans = [embedded[row, item.prompt] for row, item in enumerate(laid)]
    return [Request(prompt, embeddings=span) for prompt, span in zip(prompts, spans, strict=True)]
