"""Attacks on text-to-image models: as strong as their authors' loops with as many passes, and at all noise levels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from robustkd import plugins
from robustkd.attacks.diffusion.engine.encoder_states import encoded
from robustkd.contracts import ThreatModel
from robustkd.evaluation.images import Evaluation
from robustkd.evaluation.judging import PromptOutcome
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from robustkd.targets.text_to_image import TextToImageTarget
from support.toy_text_to_image import ShowsThePicture, requests, summing, toy

COUNT, TOKENS, POPULATION, GENERATIONS = 12, 8, 40, 40


def test_the_genetic_search_of_ring_a_bell_comes_as_near() -> None:
    """Each survivor mates with probability .5 and has two children: as many children of two parents as there are survivors."""
    target = toy("xyzzy")
    spec = {"kind": "ring-a-bell", "tokens": TOKENS, "population": POPULATION, "generations": GENERATIONS, "strength": 0.0}
    found = _attacked(target, spec, COUNT)
    with torch.no_grad():
        wanted = encoded(target, ["photo of the church"])
        ours = _costs(target, target.tokenize([said.prompt for said in found.transcripts]), wanted).mean()
        theirs = torch.stack([_authors_loop(target, wanted, np.random.default_rng(seed)) for seed in range(COUNT)]).mean()
    assert ours < 1.12 * theirs


@pytest.mark.parametrize("steps", [40, 61])
def test_a_training_of_vectors_sees_every_noise_level(steps: int) -> None:
    target = toy()
    drawer, seen = target.unet, set()

    def noting(z: torch.Tensor, t: torch.Tensor, encoder_hidden_states: torch.Tensor) -> Any:
        if torch.is_grad_enabled():
            seen.update(t.tolist())
        return drawer(z, t, encoder_hidden_states)

    target.unet = noting
    _attacked(target, {"kind": "concept-inversion", "steps": steps, "timesteps": 1}, count=1)
    assert len(seen) == target.timesteps == 40


def test_a_vector_gets_far_in_the_few_steps_of_a_small_budget() -> None:
    """Of a model that needs a vector a spread of its embeddings away; the authors' first step goes six."""
    assert _attacked(toy(), {"kind": "concept-inversion", "steps": 4}, count=4).outcome.success.all()


def test_qf_has_the_prompts_judged_that_moved_its_encoder_most() -> None:
    """As in the authors' code, which keeps the best of all prompts that the encoder was asked about."""
    target = summing()
    wanted, seen, judged = _flat(target, "photo of the church"), [], []
    encode, respond = target.encode, target.respond

    def noting(ids: torch.Tensor | None = None, embeddings: torch.Tensor | None = None) -> Any:
        told = encode(ids, embeddings)
        if embeddings is not None:
            seen.append(torch.cosine_similarity(told.tokens.detach().flatten(1), wanted).item())
        return told

    def answering(asked: Any) -> Any:
        judged.extend(request.prompt for request in asked)
        return respond(asked)

    target.encode, target.respond = noting, answering
    _attacked(target, {"kind": "qf", "steps": 15, "lr": 0.3}, count=1, attempts=4)
    found = [torch.cosine_similarity(_flat(target, prompt), wanted).item() for prompt in judged[-3:]]
    assert len(seen) == 3 * 15
    assert min(found) == pytest.approx(min(seen), abs=1e-5)


def _attacked(target: TextToImageTarget, spec: dict[str, Any], count: int, attempts: int = 2) -> Evaluation[PromptOutcome]:
    judges, attack = {"picture": ShowsThePicture()}, plugins.make("attacks", spec)
    batch = prepare(target, requests(count), np.arange(count), judges)
    return evaluate_prompt_attack(target, attack, batch, attack.threat_for(ThreatModel.by_prompt(attempts)), judges)


def _flat(target: TextToImageTarget, prompt: str) -> torch.Tensor:
    return target.encode(target.tokenize([prompt])).tokens.detach().flatten(1)


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
