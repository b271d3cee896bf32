"""Embedding attack: gradient ascent on what the prompt is embedded to.

    max_d log p(beginning of the answer | embedded prompt + d),   ||d_token|| <= eps * mean embedding norm

It moves the embeddings of the whole prompt, or those of some tokens appended to it. What it finds corresponds to no text: it
bounds what an attacker with the weights can do, and it is what continuous adversarial training trains against, so whether
that carries over must be asked of attacks on the text (``gcg``, ``random-search``). At a large eps one ascent ends in a poor
place: it is repeated from random starts, and at several eps. The point at which the beginning of the answer is likeliest need not be
one where the answer is right, so the target is also asked on the way.

Source: Schwinn et al.: Soft prompt threats (NeurIPS 2024), equation 1; eps relative to the mean embedding norm as in Xhonneux
et al. 2024, section 4; asked on the way as in the authors' code, github.com/SchwinnL/LLM_Embedding_Attack (generate_interval).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.text.engine.continuous import BestPerturbation, Direction, EmbeddingPGD, Norm, last_of, with_suffix
from robustkd.attacks.text.engine.target_prefix import fitting, target_prefixes
from robustkd.attacks.text.engine.vocabulary import Vocabulary
from robustkd.contracts import Attempts, EmbeddingRadius, Params, PromptAttack, PromptBatch, Request, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
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
    asks: int = Field(3, ge=1, description="attempts during each ascent, as far as the attempts are enough for all ascents")


class AscentAttack(PromptAttack[CausalLMTarget]):
    """Ascents in embedding space, and attempts on the way of each; its parameters have ``slots`` and ``asks``."""

    needs = PromptAttack.needs | {"tokens", "embeddings", "log-probabilities"}
    gradients = True
    space = "embeddings"

    @abstractmethod
    def ascents(self, rng: SampleRng) -> Iterable[tuple[EmbeddingPGD, SampleRng, SampleRng | None]]:
        """Each ascent, what draws the appended tokens, and what draws where it begins; None: at the tokens themselves."""

    @override
    def search(
        self, target: CausalLMTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """``asks`` attempts with each ascent: ``steps + asks`` forward passes, ``steps`` backward.

        Raises:
            DataError: a request has no ``target``.
        """
        p, words, ascents = self.params, Vocabulary.of(target).words, list(self.ascents(rng))
        asks = asks_each(p.asks, len(ascents), attempts.budget)
        for pgd, suffixes, starts in ascents:
            attempt_with_ascent(pgd, target, batch, attempts, words, p.slots, suffixes, starts, asks)


class Embedding(AscentAttack):
    """Ascent in embedding space inside a ball around each token."""

    Params = EmbeddingParams
    source = "Schwinn et al. 2024, arXiv:2402.09063"
    version = "3"  # 1 took the table's norms for a unit, which Gemma scales; 2 asked at the end of each ascent alone

    def threat_for(self, threat: ThreatModel) -> ThreatModel:
        """Results are judged under the largest eps of the parameters."""
        p = self.params
        return ThreatModel(budget=EmbeddingRadius(max(p.eps), threat.attempts, p.norm))

    @override
    def ascents(self, rng: SampleRng) -> Iterator[tuple[EmbeddingPGD, SampleRng, SampleRng | None]]:
        """From the smallest eps to the largest, the first of each from the tokens themselves."""
        p = self.params
        for eps in sorted(p.eps):
            pgd = EmbeddingPGD(eps, p.steps, p.step_size * eps, p.norm, p.direction)
            for restart in range(p.restarts):
                draws = rng.fork(f"{eps}/{restart}")
                yield pgd, draws.fork("slots"), draws if restart else None


def attempt_with_ascent(
    pgd: EmbeddingPGD,
    target: CausalLMTarget,
    batch: PromptBatch,
    attempts: Attempts,
    words: Tensor,
    slots: int,
    suffixes: SampleRng,
    starts: SampleRng | None,
    asks: int,
) -> None:
    """One ascent for every open request, and attempts with the best point so far on its way, the last one at its end.

    Args:
        words: the tokens of which ``slots`` are drawn by ``suffixes`` and appended.
        starts: draws where the ascents begin; None: at the tokens themselves.
        asks: number of the attempts, at even distances; no more than there are steps.
    """
    ends = sorted({round(pgd.steps * number / asks) for number in range(1, asks + 1)} - {0})

    def ask(rows: Tensor) -> None:
        rows = rows[torch.isin(rows, attempts.open)]  # where memory ran out on the way, some may be done
        if not len(rows):
            return
        suffix = words[suffixes.select(rows).integers((slots,), len(words))]
        ascent = Ascent(pgd, target, batch, rows, suffix, starts.select(rows) if starts else None)
        for before, end in zip((0, *ends), ends, strict=False):
            steps = end - before
            asked = ascent.go_on(steps)
            attempts.spend(ascent.rows, forwards=steps + 1, backwards=steps)
            attempts(ascent.rows, asked)
            ascent.keep(torch.isin(ascent.rows, attempts.open))
            if not len(ascent.rows):
                return

    rows = fitting(target, batch.requests, attempts, suffix=slots, answers=target_prefixes(batch.requests))
    in_memory(ask, rows, ROWS)


class Ascent:
    """PGD on the embeddings of some requests, a part of its steps at a time.

    Args:
        pgd: the ascent.
        target: who is asked.
        batch: the requests; their column ``target`` is the beginning of the answer that is aimed at.
        rows: (A,) which of them.
        suffix: (A, S) ids of tokens appended to the prompts, which alone are moved; without any the prompts' own are.
        rng: of a random start; None starts at the tokens themselves.

    Attributes:
        rows: those that are moved still.
    """

    def __init__(
        self, pgd: EmbeddingPGD, target: CausalLMTarget, batch: PromptBatch, rows: Tensor, suffix: Tensor, rng: SampleRng | None
    ) -> None:
        requests = batch.requests
        self._prompts, answers, systems = (
            [column[row] for row in rows.tolist()]
            for column in (requests["prompt"], target_prefixes(requests), requests.get("system"))
        )
        laid = [
            with_suffix(target.encode(prompt, answer, ends=False, system=system), ids)
            for prompt, answer, system, ids in zip(self._prompts, answers, systems, suffix.tolist(), strict=True)
        ]
        self.rows, self._pgd, self._target, self._rng = rows, pgd, target, rng
        self._spans, self._tokens = [item.prompt for item in laid], target.batch(laid)
        prompts = self._tokens.prompt
        self._moved = last_of(prompts, suffix.shape[1]) if suffix.shape[1] else prompts
        self._found: BestPerturbation | None = None

    def go_on(self, steps: int) -> list[Request]:
        """So many steps more; the requests with the best embeddings so far."""
        pgd, earlier = replace(self._pgd, steps=steps), self._found
        found = pgd(self._target, self._tokens, self._moved, self._rng, None if earlier is None else earlier.last)
        self._found = found = found if earlier is None else found.or_earlier(earlier)
        embedded = self._target.embed(self._tokens.ids).detach()
        embedded = (embedded + found.d).to(embedded.dtype)
        return [
            Request(prompt, embeddings=embedded[row, span])
            for row, (prompt, span) in enumerate(zip(self._prompts, self._spans, strict=True))
        ]

    def keep(self, standing: Tensor) -> None:
        """Go on with those alone of which the (A,) mask ``standing`` says so."""
        places = standing.nonzero().squeeze(1)
        self.rows = self.rows[places]
        self._prompts, self._spans = ([column[place] for place in places.tolist()] for column in (self._prompts, self._spans))
        self._tokens, self._moved = self._tokens.select(places), self._moved[places]
        self._found = self._found and self._found.select(places)


def asks_each(asks: int, ascents: int, budget: int) -> int:
    """How often each of ``ascents`` is asked within the ``budget`` of attempts: ``asks`` times, or less so that all come to an end."""
    return max(1, min(asks, budget // ascents))
