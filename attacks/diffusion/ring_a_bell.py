"""Ring-A-Bell: tokens whose encoding is that of the request, pushed along the concept's direction; the model that draws is not asked.

    wanted = enc(p) + strength * direction,     direction = mean over frames of  enc(frame with the concept) - enc(frame without it)
    min over tokens  ||enc(tokens) - wanted||^2 over all positions, by a genetic search:

        the better half survives;  a share ``crossover`` of the survivors, drawn at random, mates with another one (one cut), and both
        children join them;  with the probability ``mutation`` a prompt gets another token at a place drawn at random: each of them,
        the best included

The best that was ever seen is kept aside, as mutation can lose it. ``original`` is the model whose text encoder is asked; left out,
it is the attacked one's own, which may have been erased. The prompts that are judged are the best of the last population.

Control: ``generations: 0``, the best of the first, random population.

Source: Tsai et al.: Ring-A-Bell! How reliable are concept removal methods for diffusion models? (ICLR 2024), section 4. As read in the
authors' code: the distance over all positions, strength 3, 200 prompts of 16 tokens, 3,000 generations, crossover .5, mutation .25.
There each survivor mates with that probability, so that the number of prompts differs from one generation to the next; here it is fixed.
Theirs are pairs of prompts for each concept, written by people; here a frame stands with the concept's name and with ``without``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from robustkd.attacks.diffusion.engine.encoder_states import TOGETHER, TextEncoderAttack, encoded
from robustkd.attacks.diffusion.engine.ranked import attempt_in_order
from robustkd.attacks.diffusion.engine.slots import Slots, vocabulary
from robustkd.contracts import Attempts, Params, PromptBatch, Request, TargetRef, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.data.captions import called
from robustkd.lazy import torch
from robustkd.targets.memory import in_memory
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor


class RingABellParams(Params):
    """The direction, and the genetic search."""

    tokens: int = Field(16, ge=1, description="of a prompt; the paper's are 16, 38 and 77")
    strength: float = Field(3.0, ge=0, description="how far along the concept's direction, eta")
    frames: tuple[str, ...] = Field(
        ("{}", "a photo of {}", "a picture of {}"), min_length=1, description="texts that a concept is put into"
    )
    without: str = Field("", description="what is put into them in the concept's place")
    population: int = Field(200, ge=2, multiple_of=2, description="prompts at a time")
    generations: int = Field(3000, ge=0, description="of the search; 0: none, the control")
    crossover: float = Field(0.5, ge=0, le=1, description="how many of the survivors mate in each generation")
    mutation: float = Field(0.25, ge=0, le=1, description="how often a prompt changes a token")
    original: TargetRef | None = Field(None, description="the defense whose text encoder is asked")
    batch_size: int = Field(8, ge=1, description="requests that are searched for side by side; no result depends on it")

    @field_validator("frames")
    @classmethod
    def _have_a_place(cls, frames: tuple[str, ...]) -> tuple[str, ...]:
        if bad := [frame for frame in frames if "{}" not in frame]:
            raise ValueError(f"the frame {bad[0]!r} has no {{}} where the concept stands")
        return frames

    @property
    def survivors(self) -> int:
        """How many prompts live on."""
        return self.population // 2

    @property
    def pairs(self) -> int:
        """How many of them mate; each pair has two children."""
        return int(self.crossover * self.survivors)

    @property
    def encodings(self) -> int:
        """How many prompts the search asks the text encoder about."""
        return self.population + self.generations * (self.survivors + 2 * self.pairs)


class RingABell(TextEncoderAttack):
    """A genetic search for prompts by a text encoder alone; passes are its own."""

    Params = RingABellParams
    source = "Tsai et al. 2024, arXiv:2310.10012"
    # 1 asked for some digits by a word that no caption has; 2 had half as many children, and copies of survivors in their place
    version = "3"

    def search(
        self, target: TextToImageTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """The request as it is, then the best prompts of the last population.

        Raises:
            UsageError: the model reads fewer tokens.
        """
        p, requests = self.params, batch.requests
        model = self.asked_model(target)
        prompts = requests["prompt"]
        slots = Slots(target, prompts, "replace", p.tokens).leave_full(attempts)
        attempts(everyone := attempts.open, [Request(prompts[row]) for row in everyone.tolist()])
        rows = attempts.open
        if not len(rows):
            return
        with torch.no_grad():
            wanted = encoded(model, prompts) + p.strength * directions(model, requests["concept"], p.frames, p.without)
            search = partial(genetic_search, model, slots, vocabulary(target), wanted, p, rng)
            found = torch.cat(in_memory(search, rows, p.batch_size))
        attempts.spend(rows, p.encodings, 0)
        attempt_in_order(attempts, slots, dict(zip(rows.tolist(), found, strict=True)))


def directions(model: TextToImageTarget, concepts: tuple[str, ...], frames: tuple[str, ...], without: str) -> Tensor:
    """(N, T, D) the direction of each of N concepts: the mean difference that its name makes in the frames."""
    names = list(dict.fromkeys(concepts))
    bare = encoded(model, [frame.format(without).strip() for frame in frames])
    of = {name: (encoded(model, [frame.format(called(name)) for frame in frames]) - bare).mean(0) for name in names}
    return torch.stack([of[name] for name in concepts])


def genetic_search(
    model: TextToImageTarget,
    slots: Slots,
    words: Tensor,
    wanted: Tensor,
    p: RingABellParams,
    rng: SampleRng,
    rows: Tensor,
) -> Tensor:
    """(B, population, tokens) the last population of each request, the best first, headed by the best that there ever was."""

    def costs(population: Tensor) -> Tensor:
        flat = population.flatten(0, 1)
        at = rows.repeat_interleave(population.shape[1])
        told = [
            model.encode(slots.filled(some, tokens)).tokens.float() - wanted[some]
            for some, tokens in zip(at.split(TOGETHER), flat.split(TOGETHER), strict=True)
        ]
        return torch.cat([part.square().sum((1, 2)) for part in told]).reshape(population.shape[:2])

    def drawn(name: str, shape: tuple[int, ...], high: int) -> Tensor:
        found: Tensor = rng.fork(name).select(rows).integers(shape, high).to(words.device)
        return found

    population = words[drawn("first", (p.population, p.tokens), len(words))]
    cost = costs(population)
    best, least = _best(population, cost)
    size = p.survivors + 2 * p.pairs
    for generation in range(p.generations):
        draws = {
            name: drawn(f"{generation}/{name}", (count,), high)
            for name, count, high in (
                ("second", p.pairs, p.survivors),
                ("cut", p.pairs, p.tokens),
                ("place", size, p.tokens),
                ("token", size, len(words)),
            )
        }
        chances = rng.fork(f"{generation}/chances").select(rows)
        mating, mutation = (
            chances.fork(name).uniform((count,)).to(cost) for name, count in (("mating", p.survivors), ("mutation", size))
        )
        draws["first"] = mating.argsort(1)[:, : p.pairs]
        population = following(population, cost, draws, mutation, words, p)
        cost = costs(population)
        now, lower = _best(population, cost)
        best, least = torch.where((lower < least)[:, None], now, best), torch.minimum(lower, least)
    order = cost.argsort(1)
    ranked = population.gather(1, order.unsqueeze(2).expand_as(population))
    return torch.cat([best.unsqueeze(1), ranked[:, :-1]], 1)


def _best(population: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
    least, place = cost.min(1)
    return population[torch.arange(len(population), device=cost.device), place], least


def following(
    population: Tensor, cost: Tensor, draws: dict[str, Tensor], chances: Tensor, words: Tensor, p: RingABellParams
) -> Tensor:
    """(B, survivors + 2 pairs, k) the next population.

    Args:
        population: (B, P, k) tokens.
        cost: (B, P).
        draws: (B, pairs) places of ``first`` and ``second`` parents among the survivors and of cuts; (B, survivors + 2 pairs) places
            and numbers of tokens that mutation changes.
        chances: (B, survivors + 2 pairs) in [0, 1), of a mutation.
        words: (A,) the tokens that may be taken.
    """
    order = cost.argsort(1)[:, : p.survivors].unsqueeze(2).expand(-1, -1, population.shape[2])
    survivors = population.gather(1, order)
    first, second = (
        survivors.gather(1, draws[name].unsqueeze(2).expand(-1, -1, population.shape[2])) for name in ("first", "second")
    )
    behind = torch.arange(population.shape[2], device=cost.device) >= draws["cut"].unsqueeze(2)
    found = torch.cat([survivors, torch.where(behind, second, first), torch.where(behind, first, second)], 1)
    changed = (chances < p.mutation).unsqueeze(2)
    at = torch.arange(population.shape[2], device=cost.device) == draws["place"].unsqueeze(2)
    return torch.where(changed & at, words[draws["token"]].unsqueeze(2), found)
