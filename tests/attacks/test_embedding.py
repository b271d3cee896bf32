"""Attacks in embedding space on a small random language model: what they put to it is inside their budget, and works."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from robustkd.attacks.text.embedding_space.embedding import Embedding, EmbeddingParams
from robustkd.attacks.text.embedding_space.soft_prompt import SoftPrompt, SoftPromptParams
from robustkd.contracts import (
    AttackError,
    Attempts,
    DataError,
    EmbeddingRadius,
    PromptAttack,
    PromptBatch,
    Prompts,
    Request,
    ThreatModel,
)
from robustkd.contracts.random import SampleRng
from robustkd.evaluation.images import Evaluation
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from robustkd.targets import CausalLMTarget
from support.begins_as_aimed import BeginsAsAimed
from support.toy_language_model import toy_language_model

WORDS = tuple("abcdefghijklmn")
REQUESTS = {"prompt": ("a b c", "d e", "f g h i"), "target": ("j k", "l", "m n")}


class Listening(CausalLMTarget):
    """Remembers what it was asked."""

    heard: list[Request]

    def respond(self, asked: Sequence[Request]) -> list[str]:
        self.heard.extend(asked)
        return super().respond(asked)


def _attacked(
    attack: PromptAttack, rows: Sequence[int] = (0, 1, 2), *, make: type[Listening] | None = None, attempts: int = 20
) -> tuple[Evaluation, Listening]:
    plain = toy_language_model(WORDS, hidden_size=32)
    target = (make or Listening)(plain.module, plain.tokenizer, max_new_tokens=6)
    target.heard = []
    columns = {name: tuple(texts[row] for row in rows) for name, texts in REQUESTS.items()}
    judges = {"begins": BeginsAsAimed()}
    batch = prepare(target, Prompts(columns, np.zeros(len(rows), dtype=np.int64)), np.array(rows), judges)
    target.heard.clear()
    threat = attack.threat_for(ThreatModel.by_prompt(attempts))
    found = evaluate_prompt_attack(target, attack, batch, threat, judges)
    assert not batch.unattacked.complied.any()
    return found, target


def _moves(target: Listening, asked: Request) -> Tensor:
    """(T, D) by how much the prompt's own tokens were moved."""
    assert asked.embeddings is not None
    clean = target.embed(target.batch([target.encode(asked.prompt)]).ids)[0, target.encode(asked.prompt).prompt]
    return asked.embeddings[: len(clean)] - clean.detach()


@pytest.mark.parametrize(("norm", "direction"), [("l2", "gradient"), ("linf", "sign")])
def test_every_attempt_is_within_eps_of_the_prompt(norm: str, direction: str) -> None:
    """The smallest eps comes first, each with its restarts; in linf a coordinate moves by eps / sqrt(D) at most."""
    params = EmbeddingParams.model_validate(
        {"eps": [1.5, 0.001], "steps": 12, "step_size": 0.2, "norm": norm, "direction": direction, "asks": 1}
    )
    attack = Embedding(params)
    found, target = _attacked(attack)
    assert attack.threat_for(ThreatModel.by_prompt(20)) == ThreatModel(budget=EmbeddingRadius(1.5, 20, norm))  # type: ignore[arg-type]
    assert found.outcome.success.all()
    radii = [0.001] * 6 + [1.5] * (len(target.heard) - 6)
    assert len(radii) > 6
    for asked, eps in zip(target.heard, radii, strict=True):
        moves, budget = _moves(target, asked), eps * target.embedding_norm
        size = moves.norm(dim=1) if norm == "l2" else moves.abs().amax(1) * moves.shape[1] ** 0.5
        assert 0.5 * budget < size.max() <= budget * 1.001
    assert (found.outcome.backwards == 12 * found.outcome.attempts).all()


@pytest.mark.parametrize(
    "attack",
    [
        Embedding(EmbeddingParams(eps=(3.0,), slots=3, steps=20)),
        SoftPrompt(SoftPromptParams(slots=3, steps=30)),
    ],
    ids=["embedding", "soft-prompt"],
)
def test_a_suffix_leaves_the_prompt_alone(attack: PromptAttack) -> None:
    found, target = _attacked(attack)
    assert found.outcome.success.all()
    for asked in target.heard:
        assert len(asked.embeddings) == len(asked.prompt.split()) + 3  # type: ignore[arg-type]
        assert (_moves(target, asked) == 0).all()


def test_a_requests_attempts_do_not_depend_on_the_batch() -> None:
    attack = Embedding(EmbeddingParams(eps=(0.05,), slots=2, steps=4))
    _, together = _attacked(attack)
    _, alone = _attacked(attack, rows=[1])
    heard = [asked.embeddings for asked in together.heard if asked.prompt == REQUESTS["prompt"][1]]
    assert len(heard) == len(alone.heard) == 2 * 3
    for one, other in zip(heard, alone.heard, strict=True):
        torch.testing.assert_close(one, other.embeddings)


class OnTheWay(Listening):
    """Answers as it is aimed at where it is moved a little, and no longer where it is moved farther."""

    def respond(self, asked: Sequence[Request]) -> list[str]:
        answers = super().respond(asked)
        sizes = [
            float(_moves(self, one).norm(dim=1).max()) / self.embedding_norm if one.embeddings is not None else 9
            for one in asked
        ]
        aims = dict(zip(REQUESTS["prompt"], REQUESTS["target"], strict=True))
        return [aims[one.prompt] if size < 0.5 else "no" for one, size, _ in zip(asked, sizes, answers, strict=True)]


@pytest.mark.parametrize("kind", [Embedding, SoftPrompt])
def test_a_target_is_asked_on_the_way_of_an_ascent(kind: type[PromptAttack]) -> None:
    """The authors generate every few steps: where the beginning of the answer is likeliest, the rest may be wrong again."""
    params = {"steps": 8, "restarts": 1, "asks": 4, **({"eps": (2.0,)} if kind is Embedding else {"slots": 2})}
    attack = kind(kind.Params(**params, step_size=0.05 if kind is Embedding else 0.1))
    found, target = _attacked(attack, make=OnTheWay if kind is Embedding else Listening)
    if kind is Embedding:
        assert found.outcome.success.all()
        assert (found.outcome.attempts <= 2).all()
    heard = [one.embeddings for one in target.heard if one.prompt == REQUESTS["prompt"][0]]
    count = int(found.outcome.attempts[0])
    assert len(heard) == count
    assert found.outcome.backwards[0] == 2 * count  # a part of the steps before each attempt
    assert found.outcome.forwards[0] >= 3 * count


def test_all_ascents_come_to_an_end_within_few_attempts() -> None:
    attack = Embedding(EmbeddingParams(eps=(0.001, 0.002), restarts=1, steps=4, asks=3))
    found, _ = _attacked(attack, attempts=3)
    assert not found.outcome.success.any()
    assert found.outcome.attempts.tolist() == [2, 2, 2]
    assert found.outcome.backwards.tolist() == [8, 8, 8]


def test_a_request_without_an_aim_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REQUESTS, "target", ("j k", "", "m n"))
    with pytest.raises(DataError, match=r"'target' is empty .* 'd e'"):
        _attacked(SoftPrompt())


class TooFar(Embedding):
    """Moves one token farther than it is judged by."""

    def search(self, target: Listening, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng) -> None:
        prompt = batch.requests["prompt"][0]
        own = target.embed(torch.tensor(target.encode(prompt).ids[target.encode(prompt).prompt])).detach().clone()
        own[1, 0] += 1.5 * threat.eps * target.embedding_norm
        attempts(torch.tensor([0]), [Request(prompt, embeddings=own)])


def test_the_platform_measures_what_was_moved() -> None:
    with pytest.raises(AttackError, match=r"moved an embedding by 0\.3 mean norms, allowed is 0\.2"):
        _attacked(TooFar(EmbeddingParams(eps=(0.2,))))


def test_a_request_is_broken_at_the_size_that_it_took() -> None:
    found, target = _attacked(Embedding(EmbeddingParams(eps=(0.05, 2.0), steps=10, restarts=1)))
    broken = found.outcome.success
    assert broken.any()
    assert (found.broken_at[broken] <= 2.0 + 1e-6).all()
    assert np.isinf(found.broken_at[~broken]).all()
    for at, transcript in zip(found.broken_at[broken], np.array(found.transcripts)[broken], strict=True):
        asked = [item for item in target.heard if item.prompt == transcript.prompt][transcript.attempts - 1]
        moved = _moves(target, asked).norm(dim=1).max() / target.embedding_norm
        assert at == pytest.approx(float(moved), rel=1e-3)
