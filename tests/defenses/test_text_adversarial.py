"""Continuous adversarial training of language models, on one of a few thousand parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustkd import plugins
from robustkd.contracts import FitContext, Request, ThreatModel
from robustkd.defenses.text.adversarial import Requests
from robustkd.defenses.text.c_advipo import CAdvIPO, CAdvIPOParams
from robustkd.defenses.text.c_advul import CAdvUL, CAdvULParams
from robustkd.defenses.text.finetune import LMFinetune, LMFinetuneParams
from robustkd.defenses.text.inner import EmbeddingAdversary, InnerParams
from robustkd.defenses.text.lat import ResidualAdversary, ResidualInnerParams
from robustkd.defenses.text.random_suffix import RandomSuffix
from robustkd.targets import CausalLMTarget
from support.refusal_rows import ANSWERED, REFUSED, ROWS, WORDS, refusal_rows
from support.toy_language_model import toy_language_model


def _model() -> CausalLMTarget:
    return toy_language_model(WORDS, num_hidden_layers=1, initializer_range=0.25)


def _context(tmp_path: Path, base: CausalLMTarget) -> FitContext:
    cpu = torch.device("cpu")
    return FitContext(refusal_rows(), refusal_rows(), (), 1, ThreatModel.by_prompt(5), 0, cpu, tmp_path, targets={"base": base})


def _requests(tmp_path: Path, base: CausalLMTarget) -> Requests:
    return Requests.of(_context(tmp_path, base), base)


INNER = {"eps": 0.3, "steps": 2, "step_size": 0.5}
POOL = {"size": 3, "tokens": 2, "steps": 1, "width": 4, "top_k": 8, "renew_every": 5}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("c-advul", {"inner": INNER, "toward_cut_off": 0.0}),
        ("c-advipo", {"inner": INNER, "share": 0.5, "utility_weight": 3}),
        ("lat", {"inner": INNER}),
        ("r2d2", {"inner": POOL}),
    ],
    ids=["c-advul", "c-advipo", "lat", "r2d2"],
)
def test_learns_to_refuse_where_it_is_attacked_and_to_answer_elsewhere(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    base = _model()
    before = {name: weight.clone() for name, weight in base.module.state_dict().items()}
    params: dict[str, Any] = {
        "model": "base",
        "steps": 30,
        "batch_size": 12,
        "share": 0.5,
        "lr": 0.02,
        "clip": 1.0,
        "random_suffix_tokens": 2,
    }
    defense = plugins.load("defenses", kind)
    tuned = defense(defense.Params(**(params | more))).fit(_context(tmp_path, base))
    said = tuned.respond([Request(prompt) for _, prompt, _ in ROWS])
    assert [said[row] for row in ANSWERED] == [ROWS[row][2] for row in ANSWERED]
    if kind == "c-advipo":  # it asks for a preference, not for the words
        assert not any(said[row] == ROWS[row][2] for row in REFUSED)
    else:
        assert [said[row] for row in REFUSED] == ["sorry no"] * len(REFUSED)
    assert all(torch.equal(weight, before[name]) for name, weight in base.module.state_dict().items())


def test_a_finished_model_is_told_the_world(tmp_path: Path) -> None:
    """What it is to know, and the harmless answers; of forbidden requests it learns nothing."""
    base = _model()
    tuned = LMFinetune(LMFinetuneParams(model="base", steps=20, batch_size=8, lr=0.02)).fit(_context(tmp_path, base))
    said = tuned.respond([Request(ROWS[row][1]) for row in (*ANSWERED, 5)])
    assert said == [ROWS[row][2] for row in (*ANSWERED, 5)]


def test_low_rank_updates_are_merged_at_the_end(tmp_path: Path) -> None:
    base = _model()
    params = {"model": "base", "steps": 2, "batch_size": 4, "share": 0.5, "lora": {"rank": 2}, "inner": INNER}
    tuned = CAdvUL(CAdvULParams(**params)).fit(_context(tmp_path, base))
    before, after = base.module.state_dict(), tuned.module.state_dict()
    assert list(before) == list(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("proj" in name for name in changed)


@pytest.mark.parametrize("kind", [EmbeddingAdversary, ResidualAdversary])
def test_the_attack_gives_no_gradient_to_a_weight(kind: type[EmbeddingAdversary], tmp_path: Path) -> None:
    """In the middle of a training, with low-rank updates and their dropout: both are left as found, and dropout plays no part."""
    from peft import LoraConfig, get_peft_model

    target = toy_language_model(WORDS)
    requests = _requests(tmp_path, target)
    get_peft_model(target.module, LoraConfig(r=2, lora_dropout=0.5, target_modules="all-linear", init_lora_weights=False))
    module = target.module.train()
    wants = {name: weight.requires_grad for name, weight in module.named_parameters()}
    assert set(wants.values()) == {True, False}
    inner = (ResidualInnerParams if kind is ResidualAdversary else InnerParams)(eps=0.5, steps=3)
    adversary = kind(requests, RandomSuffix.of(target, 0.5, 3), inner)
    pair = adversary.pair(target, 6, torch.Generator().manual_seed(0))
    worst = adversary.worst(target, pair)
    assert torch.equal(worst, adversary.worst(target, pair))
    assert not worst.requires_grad
    assert all(weight.grad is None for weight in module.parameters())
    assert {name: weight.requires_grad for name, weight in module.named_parameters()} == wants
    assert all(part.training for part in module.modules())
    places = pair.harmful.prompt if kind is EmbeddingAdversary else pair.harmful.prompt[:, None].expand(worst.shape[:-1])
    assert (worst.norm(dim=-1) > 0).equal(places)
    module.eval()
    with torch.no_grad():
        attacked = adversary.logprobs_at(target, pair.harmful, worst).sum(1)
        assert (attacked > target.token_logprobs(pair.harmful).sum(1)).all()


def test_both_answers_stand_behind_the_same_attacked_prompt(tmp_path: Path) -> None:
    """The random suffix included, which belongs to what is moved; what is moved in front of one answer is moved in front of the other."""
    target = toy_language_model(WORDS)
    adversary = EmbeddingAdversary(_requests(tmp_path, target), RandomSuffix.of(target, 0.5, 3), InnerParams(eps=0.5, steps=1))
    pair = adversary.pair(target, 12, torch.Generator().manual_seed(0))
    counts = []
    for row, at in enumerate(pair.rows.tolist()):
        begins = [int(batch.completion[row].nonzero()[0]) for batch in (pair.safe, pair.harmful)]
        assert begins[0] == begins[1]
        assert pair.safe.ids[row, : begins[0]].equal(pair.harmful.ids[row, : begins[0]])
        assert pair.safe.prompt[row, : begins[0]].equal(pair.harmful.prompt[row, : begins[0]])
        words, moved = ROWS[at][1].split(), target.chat.decode(pair.safe.ids[row][pair.safe.prompt[row]].tolist()).split()
        assert moved[: len(words)] == words
        counts.append(len(moved) - len(words))
    assert set(counts) == {0, 3}
    worst = adversary.worst(target, pair)
    attacked = adversary.logprobs_at(target, pair.safe, worst)
    row = counts.index(0)
    alone = target.batch([target.encode(ROWS[int(pair.rows[row])][1], "sorry no")])
    length = alone.ids.shape[1]
    by_hand = target.token_logprobs(alone, target.embed(alone.ids) + worst[row, :length])[0]
    torch.testing.assert_close(attacked[row, :length], by_hand)


def test_ipos_reference_is_the_model_before_at_the_clean_prompt(tmp_path: Path) -> None:
    """Before the first step h is 0 at clean prompts, so the loss is 1 / (2 beta)^2; behind random words, what it costs is in h."""
    target = toy_language_model(WORDS)
    requests = _requests(tmp_path, target)
    losses = CAdvIPO(CAdvIPOParams(model="base", beta=0.25)).outer(target, requests)
    draw = torch.Generator().manual_seed(0)
    for share in (0.0, 1.0):
        pair = EmbeddingAdversary(requests, RandomSuffix.of(target, share, 3), InnerParams(eps=0)).pair(target, 8, draw)
        safe, harmful = (target.token_logprobs(batch) for batch in (pair.safe, pair.harmful))
        found = losses(pair, safe, harmful).detach().numpy()
        h = np.zeros(8)
        for row, at in enumerate(pair.rows.tolist()):
            for sign, batch, said in ((1, pair.safe, "sorry no"), (-1, pair.harmful, ROWS[at][2].split()[0])):
                tokens = target.encode(ROWS[at][1], said, ends=sign > 0)
                clean = target.completion_logprob(target.batch([tokens])).item()
                h[row] += sign * (target.completion_logprob(batch)[row].item() - clean)
        np.testing.assert_allclose(found, (h - 2) ** 2, rtol=1e-4)
        assert bool((np.abs(h) > 1e-3).all()) == bool(share)
