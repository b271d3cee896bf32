"""Searches for prompts of text-to-image models, against the loop of their authors at as many questions to the text encoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from robustkd import plugins
from robustkd.attacks.diffusion.ring_a_bell import encoded
from robustkd.contracts import ThreatModel
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from robustkd.targets.text_to_image import TextToImageTarget
from support.toy_text_to_image import ShowsThePicture, requests, toy

COUNT, TOKENS, POPULATION, GENERATIONS = 12, 8, 40, 40


def test_the_genetic_search_of_ring_a_bell_comes_as_near() -> None:
    """Each survivor mates with probability .5 and has two children: as many children of two parents as there are survivors."""
    judges, target = {"picture": ShowsThePicture()}, toy("xyzzy")
    spec = {"kind": "ring-a-bell", "tokens": TOKENS, "population": POPULATION, "generations": GENERATIONS, "strength": 0.0}
    batch = prepare(target, requests(COUNT), np.arange(COUNT), judges)
    found = evaluate_prompt_attack(target, plugins.make("attacks", spec), batch, ThreatModel.by_prompt(2), judges)
    with torch.no_grad():
        wanted = encoded(target, ["photo of the church"])
        ours = _costs(target, target.tokenize([said.prompt for said in found.transcripts]), wanted).mean()
        theirs = torch.stack([_authors_loop(target, wanted, np.random.default_rng(seed)) for seed in range(COUNT)]).mean()
    assert ours < 1.12 * theirs


def _costs(target: TextToImageTarget, ids: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return (target.encode(ids).tokens - wanted).square().sum((1, 2))


def _authors_loop(target: TextToImageTarget, wanted: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """The least cost in the search as its paper's appendix describes it, prompt by prompt."""
    words = target.embedding.num_embeddings
    people = [rng.integers(3, words, TOKENS) for _ in range(POPULATION)]
    best = torch.tensor(torch.inf)
    for _ in range(GENERATIONS + 1):
        ids = target.tokenize([""] * len(people))
        ids[:, 1 : TOKENS + 1] = torch.from_numpy(np.stack(people))
        cost = _costs(target, ids, wanted)
        best = torch.minimum(best, cost.min())
        people = [people[place] for place in cost.argsort()[: POPULATION // 2].tolist()]
        for one in list(people):
            if rng.random() < 0.5:
                other, cut = people[rng.integers(POPULATION // 2)], rng.integers(TOKENS)
                people += [np.append(one[:cut], other[cut:]), np.append(other[:cut], one[cut:])]
        people = [one.copy() for one in people]
        for one in people:
            if rng.random() < 0.25:
                one[rng.integers(TOKENS)] = rng.integers(3, words)
    return best
