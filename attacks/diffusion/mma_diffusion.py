"""MMA-Diffusion's text part: a prompt without forbidden words that the text encoder reads as the request.

    wanted = the text encoder's state at the end of the request
    min over tokens  1 - cos( end(tokens), wanted ),    by greedy coordinate gradients:

        X_i   = the ``top_k`` tokens that would lower it most at place i, to first order;  no token of a forbidden word is one of them
        each of ``width`` candidates has one place, the places evenly in turn, and there a token of X_i drawn at random
        go on from the best candidate, even uphill; the best that was ever seen is kept aside

The request's own words are gone, so a filter of words lets the prompt pass, and an eraser of names finds no name in it. The model that
draws is not asked. ``original`` is the model whose text encoder is; left out, it is the attacked one's own, which may have been erased.
The prompts that are judged are those that the search went through, the best first.

Control: ``steps: 0``, the random tokens that the search begins with.

Source: Yang et al.: MMA-Diffusion: multimodal attack on diffusion models (CVPR 2024), arXiv:2311.17516, section 3.2. As read in the
authors' code: the cosine, 20 tokens in the request's place, 1,000 steps of 512 candidates from 256 tokens a place, the best of each step
whatever it was before, and that tokens with a sensitive word in them are ruled out (theirs are words of nudity; here those of the
request's concept, or ``banned``). They begin with random letters, here it is tokens. Their stop at a distance of 0.1 is left out. The
attack on the picture of an editing model, their second part, is not here.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.diffusion.engine.encoder_states import TextEncoderAttack, end_states
from robustkd.attacks.diffusion.engine.ranked import attempt_in_order
from robustkd.attacks.diffusion.engine.slots import Slots, vocabulary
from robustkd.contracts import Attempts, Params, PromptBatch, Request, TargetRef, ThreatModel, UsageError
from robustkd.contracts.random import SampleRng
from robustkd.data.captions import called
from robustkd.lazy import F, torch
from robustkd.targets import frozen
from robustkd.targets.memory import in_memory
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor


class MMADiffusionParams(Params):
    """The prompt, and the search for it."""

    tokens: int = Field(20, ge=1, description="of a prompt")
    steps: int = Field(1000, ge=0, description="tokens changed, one a step; 0: none, the control")
    width: int = Field(512, ge=1, description="candidates in each step")
    top_k: int = Field(256, ge=1, description="tokens that come into question at each place")
    banned: tuple[str, ...] = Field(
        (), description="no token has one of these in it; default: the words of the request's concept"
    )
    original: TargetRef | None = Field(None, description="the defense whose text encoder is asked")
    batch_size: int = Field(8, ge=1, description="requests that are searched for side by side; no result depends on it")


class MMADiffusion(TextEncoderAttack):
    """A greedy search for prompts that a text encoder reads alike; passes are its own."""

    Params = MMADiffusionParams
    gradients = True
    source = "Yang et al. 2024, arXiv:2311.17516"

    def search(
        self, target: TextToImageTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """The request as it is, then the prompts of the search.

        Raises:
            UsageError: the model reads fewer tokens, or every token of the vocabulary is banned.
        """
        p, prompts = self.params, batch.requests["prompt"]
        model = self.asked_model(target)
        slots = Slots(target, prompts, "replace", p.tokens).leave_full(attempts)
        attempts(everyone := attempts.open, [Request(prompts[row]) for row in everyone.tolist()])
        rows = attempts.open
        if not len(rows):
            return
        words = vocabulary(target)
        allowed = self._allowed(target, words, batch.requests.get("concept"))
        with torch.no_grad():
            wanted = end_states(model, prompts)
        with frozen(model.module):
            found = torch.cat(in_memory(partial(_prompts, model, slots, words, allowed, wanted, p, rng), rows, p.batch_size))
        attempts.spend(rows, p.steps * (p.width + 1) + 1, p.steps)
        attempt_in_order(attempts, slots, dict(zip(rows.tolist(), found, strict=True)))

    def _allowed(self, target: TextToImageTarget, words: Tensor, concepts: tuple[str, ...]) -> Tensor:
        """(N, A) bool, which of the (A,) tokens a prompt for each request may have."""
        texts = [target.decode([token]).lower() for token in words.tolist()]
        of: dict[str, list[bool]] = {}
        for concept in dict.fromkeys(concepts):
            banned = [word.lower() for word in self.params.banned or called(concept).split()]
            of[concept] = [not any(word in text for word in banned) for text in texts]
            if not any(of[concept]):
                raise UsageError("every token of the vocabulary has a banned word in it", fix="ban fewer or longer words")
        return torch.tensor([of[concept] for concept in concepts], device=words.device)


def _prompts(
    model: TextToImageTarget,
    slots: Slots,
    words: Tensor,
    allowed: Tensor,
    wanted: Tensor,
    p: MMADiffusionParams,
    rng: SampleRng,
    rows: Tensor,
) -> Tensor:
    """(B, steps + 1, tokens), what the search of each request went through, the best first."""
    table = model.embed(words.unsqueeze(1)).squeeze(1).detach().float()
    # Places in ``words``; random ones that are allowed, by the ranks of random numbers.
    start = rng.fork("start").select(rows).uniform((p.tokens, len(words))).to(wanted)
    now = start.masked_fill(~allowed[rows].unsqueeze(1), -1).argmax(2)
    with torch.no_grad():
        seen, losses = [now], [distances(model, slots, rows, words[now].unsqueeze(1), wanted).squeeze(1)]
    for step in range(p.steps):
        slope = slopes(model, slots, rows, words[now], wanted, table)
        draws = rng.fork(str(step)).select(rows).uniform((p.width,)).to(wanted)
        with torch.no_grad():
            candidates = swapped(now, slope.masked_fill(~allowed[rows].unsqueeze(1), torch.inf), draws, p.top_k)
            loss, best = distances(model, slots, rows, words[candidates], wanted).min(1)
        now = candidates[torch.arange(len(rows), device=now.device), best]
        seen.append(now)
        losses.append(loss)
    order = torch.stack(losses, 1).argsort(dim=1, stable=True).unsqueeze(2).expand(-1, -1, p.tokens)
    return words[torch.stack(seen, 1).gather(1, order)]


def distances(model: TextToImageTarget, slots: Slots, rows: Tensor, tokens: Tensor, wanted: Tensor) -> Tensor:
    """(B, C) 1 - cosine of the states at the end of (B, C, k) prompts for the requests ``rows`` and (N, D) ``wanted`` ones."""
    each = rows.repeat_interleave(tokens.shape[1])
    told = [
        _states(model.encode(slots.filled(at, some)).tokens, slots, at)
        for at, some in zip(each.split(_TOGETHER), tokens.flatten(0, 1).split(_TOGETHER), strict=True)
    ]
    return (1 - F.cosine_similarity(torch.cat(told), wanted[each], dim=1)).reshape(tokens.shape[:2])


def slopes(model: TextToImageTarget, slots: Slots, rows: Tensor, tokens: Tensor, wanted: Tensor, table: Tensor) -> Tensor:
    """(B, k, A) how the distance changes, to first order, with each of the (A, E) ``table`` at each place of (B, k) prompts."""
    embedded = model.embed(slots.filled(rows, tokens)).detach().requires_grad_()
    with torch.enable_grad():
        told = _states(model.encode(embeddings=embedded).tokens, slots, rows)
        distance = (1 - F.cosine_similarity(told, wanted[rows], dim=1)).sum()
    (gradient,) = torch.autograd.grad(distance, embedded)
    at = slots.positions[rows].unsqueeze(2).expand(-1, -1, embedded.shape[2])
    return gradient.gather(1, at).float() @ table.T


def swapped(now: Tensor, slope: Tensor, draws: Tensor, top_k: int) -> Tensor:
    """(B, C, k) candidates, each with one token of the best ``top_k`` by (B, k, A) slopes, the places evenly in turn.

    Args:
        now: (B, k) places of tokens in the vocabulary.
        draws: (B, C) in [0, 1), which of the best.
    """
    count = draws.shape[1]
    best = (-slope).topk(min(top_k, slope.shape[2]), dim=2)
    # Where fewer are allowed, the rest has a slope of infinity.
    several = best.values.isfinite().sum(2)
    place = torch.arange(count, device=now.device) * now.shape[1] // count
    which = (draws * several[:, place]).long().clamp_max(best.indices.shape[2] - 1)
    token = best.indices[:, place].gather(2, which.unsqueeze(2))
    candidates = now.unsqueeze(1).repeat(1, count, 1)
    return candidates.scatter(2, place.expand(len(now), -1).unsqueeze(2), token)


_TOGETHER = 256


def _states(hidden: Tensor, slots: Slots, rows: Tensor) -> Tensor:
    return hidden[torch.arange(len(rows), device=hidden.device), slots.end[rows]].float()
