"""Gemma multiplies what its table of embeddings holds: a budget in embeddings is a share of what the model reads, not of the table."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robustkd import plugins
from robustkd.attacks.text.engine.continuous import EmbeddingPGD
from robustkd.contracts import Prompts, Request, ThreatModel
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from support.attention_kinds import model_of
from support.blind_judges import SaysYes

WORDS = tuple(f"w{number}" for number in range(20))


@pytest.mark.parametrize("kind", ["Llama", "Gemma", "Gemma2", "Gemma3"])
def test_a_token_is_moved_by_the_share_that_is_asked_for(kind: str) -> None:
    target = model_of(kind, WORDS)
    read = target.module.get_input_embeddings()(torch.arange(target.embedding.num_embeddings)).detach()
    assert target.embedding_norm == pytest.approx(float(read.norm(dim=1).mean()))
    batch = target.batch([target.encode("w1 w2", "w3")])
    pgd = EmbeddingPGD(1.0, steps=3, step_size=1.0)
    moved = pgd(target, batch, batch.prompt).d[0].norm(dim=-1).max() / read.norm(dim=1).mean()
    assert moved == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("kind", ["Llama", "Gemma"])
def test_the_audit_measures_in_the_same_unit(kind: str) -> None:
    target = model_of(kind, WORDS)
    requests = Prompts({"prompt": ("w1 w2",), "target": ("w3",)}, np.zeros(1, dtype=np.int64))
    attack = plugins.make(
        "attacks", {"kind": "embedding", "eps": [1.0], "steps": 3, "step_size": 1.0, "restarts": 1, "asks": 1}
    )
    judges = {"always": SaysYes()}  # what an attack asks first is what it took
    batch = prepare(target, requests, np.arange(1), judges)
    threat = attack.threat_for(ThreatModel.by_prompt(2))
    found = evaluate_prompt_attack(target, attack, batch, threat, judges)
    assert found.broken_at.tolist() == [pytest.approx(1.0, rel=1e-3)]


def test_an_added_token_is_as_far_as_from_the_nearest_that_the_model_reads() -> None:
    target = model_of("Gemma", WORDS)
    own = target.embed(torch.tensor(target.encode("w1").ids[target.encode("w1").prompt]))
    added = target.embed(torch.tensor([7]))
    assert target.embedding_distance(Request("w1", embeddings=torch.cat([own, added]).detach())) == pytest.approx(0, abs=1e-4)
