"""AutoDAN: a genetic search over texts around the request, whose genes are sentences and words.

    a population of templates, each an individual of sentences around {request};  in each generation
    the `elite` share with the lowest losses live on;  parents of the others by chance, exp(-loss) as likely
    children: the parents' sentences, exchanged one by one;  some of them give way to any template's
    some words are replaced by others, which are the likelier the better the prompts have been that they were in:
        score(w) <- (score(w) + mean of -loss over the prompts with w) / 2
    a child that was looked at before is reworded until it is another one

The prompts read like text, so no filter of perplexity stops them, and no gradient is needed. It stands and falls with the templates
that it begins with: give it good ones by ``templates``.

Source: Liu et al.: AutoDAN (ICLR 2024), arXiv:2310.04451, algorithms 1 to 3. There a language model writes the first population and
the mutations, and words give way to their synonyms; here sentences and words come from the templates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
from pydantic import Field

from robustkd.attacks.text.engine.candidate_queue import CandidateQueue
from robustkd.attacks.text.engine.target_prefix import REQUESTS, losses, target_prefixes
from robustkd.attacks.text.engine.templates import REQUEST, TemplateAttack, TemplateParams, templates
from robustkd.contracts import Attempts, PromptBatch, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.targets import frozen
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.guarded import copies_seen


class AutoDANParams(TemplateParams):
    """Parameters of ``autodan``; elite, crossover and mutation are the paper's."""

    generations: int = Field(50, ge=1, description="number of generations")
    population: int = Field(32, ge=2, description="prompts in each generation: forward passes, less those known already")
    elite: float = Field(
        0.1, ge=0, le=1, description="share of the population that lives on unchanged, one at least; 0: none does"
    )
    crossover: float = Field(0.5, ge=0, le=1, description="probability of each pair of sentences to be exchanged")
    mutation: float = Field(0.01, ge=0, le=1, description="probability of each sentence, and of each word, to be replaced")


_WORST = 100.0
_TRIES = 100
"""How often a child that is known is reworded, so that its pass is not lost."""

Individual = tuple[tuple[str, ...], tuple[str, ...]]
"""The sentences in front of the request, and those behind it."""


class AutoDAN(TemplateAttack[CausalLMTarget]):
    """A genetic search over texts around the request."""

    Params = AutoDANParams
    needs = TemplateAttack.needs | {"tokens", "log-probabilities"}
    source = "Liu et al. 2023, arXiv:2310.04451"
    version = "3"  # 1 let children be prompts that were known; 2 let none live on in a population of up to five

    def search(
        self, target: CausalLMTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """At most ``generations * population`` forward passes for each request.

        Raises:
            DataError: a request has no ``target``; the file of templates cannot be read.
        """
        p, answers, prompts = self.params, target_prefixes(batch.requests), batch.requests["prompt"]
        systems = batch.requests.get("system")
        first = [parse(template) for template in templates(p.templates)]
        seeds = rng.bits(()).tolist()
        with frozen(target.module):
            for rows in attempts.open.split(REQUESTS):
                queue = CandidateQueue(attempts, p.generations)
                populations = {
                    row: Population(p, first, np.random.default_rng(seeds[row] & (2**63 - 1))) for row in rows.tolist()
                }
                for _ in range(p.generations):
                    standing = [row for row in attempts.open.tolist() if row in populations]
                    if not standing:
                        break
                    fresh = [(row, one) for row in standing for one in populations[row].unknown()]
                    asked = [render(one, prompts[row]) for row, one in fresh]
                    aims, told = ([column[row] for row, _ in fresh] for column in (answers, systems))
                    found = losses(target, asked, aims, told).tolist()
                    for (row, one), prompt, loss in zip(fresh, asked, found, strict=True):
                        populations[row].known[one] = loss
                        attempts.spend(torch.tensor([row]), forwards=copies_seen(target))
                        queue.offer(row, prompt, loss)
                    queue.step()
                    for row in standing:
                        populations[row].next()


@dataclass
class Population:
    """The population of one request.

    Attributes:
        params: rates and sizes.
        pool: the templates that sentences and words come from.
        draw: its random numbers.
        sentences: those of the pool.
        members: the population.
        known: the loss of each individual that was looked at.
        scores: of words, the higher the better.
    """

    params: AutoDANParams
    pool: Sequence[Individual]
    draw: np.random.Generator
    sentences: list[str] = field(init=False)
    members: list[Individual] = field(init=False)
    known: dict[Individual, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sentences = sorted({sentence for one in self.pool for part in one for sentence in part})
        self.members = list(self.pool[: self.params.population])
        while len(self.members) < self.params.population:
            mother, father = self.draw.integers(len(self.pool), size=2)
            self.members.append(self._child(self.pool[mother], self.pool[father]))

    def unknown(self) -> list[Individual]:
        """Members whose loss is unknown, each once."""
        return [one for one in dict.fromkeys(self.members) if one not in self.known]

    def next(self) -> None:
        """Population the next generation; all members are known."""
        p = self.params
        # What does not fit into the context is worth little, not nothing: the rest of the population may be no better.
        fitness = -np.nan_to_num(np.array([self.known[one] for one in self.members]), posinf=_WORST)
        self._score(fitness)
        count = max(1, round(p.elite * p.population)) if p.elite else 0
        elite = [self.members[place] for place in np.argsort(-fitness, kind="stable")[:count]]
        parents = self.draw.choice(len(fitness), size=(p.population - len(elite), 2), p=_softmax(fitness))
        children = [self._child(self.members[mother], self.members[father]) for mother, father in parents]
        self.members = elite
        for child in children:
            self.members.append(self._another(child))

    def _child(self, mother: Individual, father: Individual) -> Individual:
        return self._crossed(mother[0], father[0]), self._crossed(mother[1], father[1])

    def _crossed(self, one: Sequence[str], other: Sequence[str]) -> tuple[str, ...]:
        """Sentences of both, in their places; some give way to any template's."""
        taken = [pair[self._happens(self.params.crossover)] for pair in zip_longest(one, other)]
        return tuple(
            self.sentences[self.draw.integers(len(self.sentences))] if self._happens(self.params.mutation) else sentence
            for sentence in taken
            if sentence is not None
        )

    def _score(self, fitness: np.ndarray) -> None:
        found: dict[str, list[float]] = {}
        for (front, back), value in zip(self.members, fitness.tolist(), strict=True):
            for word in dict.fromkeys(" ".join((*front, *back)).split()):
                found.setdefault(word, []).append(value)
        for word, values in found.items():
            mean = float(np.mean(values))
            self.scores[word] = (self.scores.get(word, mean) + mean) / 2

    def _another(self, child: Individual) -> Individual:
        """The child, reworded until it is known no more: a population of known prompts finds nothing."""
        child = self._reworded(child)
        for _ in range(_TRIES if self.params.mutation else 0):
            if child not in self.known and child not in self.members:
                break
            child = self._reworded(child)
        return child

    def _reworded(self, child: Individual) -> Individual:
        words, chances = list(self.scores), _softmax(np.array(list(self.scores.values())))

        def reworded(sentence: str) -> str:
            spelt = sentence.split()
            hit = [place for place in range(len(spelt)) if self._happens(self.params.mutation)]
            for place in hit:
                spelt[place] = words[self.draw.choice(len(words), p=chances)]
            return " ".join(spelt) if hit else sentence

        front, back = child
        return tuple(map(reworded, front)), tuple(map(reworded, back))

    def _happens(self, probability: float) -> bool:
        return bool(self.draw.random() < probability)


def parse(template: str) -> Individual:
    """Split a template into its sentences, in front of the request and behind it."""
    front, _, back = template.partition(REQUEST)
    return _sentences(front), _sentences(back)


def render(one: Individual, request: str) -> str:
    """The prompt that an individual makes of ``request``."""
    return " ".join((*one[0], request, *one[1]))


def _sentences(text: str) -> tuple[str, ...]:
    return tuple(sentence for sentence in re.split(r"(?<=[.!?:])\s+", text.strip()) if sentence)


def _softmax(values: np.ndarray) -> np.ndarray:
    weights: np.ndarray = np.exp(values - values.max())
    return weights / weights.sum()
