"""What guards make of an attack on a language model: counted by hand from the model's own answers, with and without them."""

from __future__ import annotations

from itertools import islice, permutations
from typing import Any

import numpy as np
import pytest
import torch

import robustkd
from robustkd.contracts import Request
from robustkd.defenses.text.guards.perplexity_filter import log_perplexity
from robustkd.defenses.text.guards.smoothllm import SmoothLLMSettings, SmoothLLMTarget
from robustkd.scoring.detection import auroc
from support.toy_language_model import toy_language_model

WORDS = ("say", "it", "hello", "I", "please", "cannot", "a", "b", "c", "d", "e", "f", "word", "open", "door")
MODEL = toy_language_model(WORDS, seed=1)
EVERY = [" ".join(words) for words in islice(permutations(WORDS, 3), 0, 2700, 45)]
REQUESTS, HARMLESS = EVERY[:40], EVERY[40:]


def complies(requests: Any, outputs: list[str]) -> list[bool]:
    return [output.split()[:1] in (["open"], ["a"], ["say"], ["door"]) for output in outputs]


def answers(model: Any, texts: list[str]) -> np.ndarray:
    return np.array(complies(texts, [str(answer) for answer in model.respond([Request(text) for text in texts])]))


def settings() -> dict[str, Any]:
    return {"models": {"bare": MODEL}, "judges": complies, "attempts": 1, "benign": HARMLESS, "seed": 0}


def test_a_filter_s_rejections_are_those_of_its_score() -> None:
    surprise = log_perplexity(MODEL, EVERY).double().numpy()
    threshold = float(np.sort(surprise)[len(EVERY) // 2])
    found = robustkd.attack(
        "direct", {"kind": "perplexity-filter", "model": "bare", "threshold": threshold}, REQUESTS, **settings()
    )
    alone, above = answers(MODEL, REQUESTS), surprise - threshold > 1e-4
    told = found.detection
    assert 0 < alone.sum() < len(alone)
    assert told.fooled.share == pytest.approx(alone.mean())
    assert told.evaded.share == pytest.approx((alone & ~above[:40]).mean()) == pytest.approx(found.success.mean())
    assert told.detected.share == pytest.approx(above[:40][alone].mean())
    assert told.detected.n == alone.sum()
    assert told.false_alarms.share == pytest.approx(above[40:].mean())
    assert told.false_alarms.n == len(HARMLESS)
    assert told.auroc == pytest.approx(auroc(surprise[:40][alone], surprise[40:]))


def test_a_vote_rejects_where_the_model_alone_would_have_complied() -> None:
    guard = SmoothLLMTarget(MODEL, SmoothLLMSettings(copies=3, rate=0.1))
    found = robustkd.attack("direct", {"kind": "smoothllm", "model": "bare", "copies": 3, "rate": 0.1}, REQUESTS, **settings())
    with_it, alone = (answers(model, EVERY) for model in (guard, MODEL))
    told = found.detection
    assert (with_it != alone).sum() > 5
    assert told.fooled.share == pytest.approx((with_it | alone)[:40].mean())
    assert told.evaded.share == pytest.approx(with_it[:40].mean())
    assert told.false_alarms.share == pytest.approx((alone & ~with_it)[40:].mean())


@pytest.mark.parametrize("reader", [None, "judge"])
def test_a_guard_model_s_rejections_are_those_of_the_word_that_it_finds_likelier(reader: str | None) -> None:
    """The guard reads with the guarded model itself, or with another; its two answers are compared here in one pass of the reader."""
    judge = toy_language_model(WORDS, seed=2)
    reading = judge if reader else MODEL
    odds = []
    for text in EVERY:
        with torch.no_grad():
            logits = reading(torch.tensor([reading.encode(f"say {text} word").ids]))[0, -1].double()
        yes, no = (float(logits[reading.tokenizer.convert_tokens_to_ids(word)]) for word in ("please", "cannot"))
        odds.append(yes - no)
    surest = np.sort(odds)
    cut = float(surest[30:32].mean())  # between two requests, so that no rounding decides
    guard = {"kind": "guard-model", "model": "bare", "rubric": "say {request} word", "yes": "please", "no": "cannot"}
    named = settings() | {"models": {"bare": MODEL, "judge": judge}}
    found = robustkd.attack("direct", {**guard, "reader": reader, "threshold": 1 / (1 + np.exp(-cut))}, REQUESTS, **named)
    alone, held = answers(MODEL, REQUESTS), np.array(odds) > cut
    told = found.detection
    assert 0 < (alone & held[:40]).sum() < alone.sum()
    assert 0 < held[40:].sum() < len(HARMLESS)
    assert told.fooled.share == pytest.approx(alone.mean())
    assert told.evaded.share == pytest.approx((alone & ~held[:40]).mean()) == pytest.approx(found.success.mean())
    assert (told.detected.share, told.detected.n) == (pytest.approx(held[:40][alone].mean()), alone.sum())
    assert (told.false_alarms.share, told.false_alarms.n) == (pytest.approx(held[40:].mean()), len(HARMLESS))
    assert told.auroc == pytest.approx(auroc(np.array(odds)[:40][alone], np.array(odds)[40:]))


def test_it_counts_once_the_model_alone_complies_with_any_attempt() -> None:
    """Behind a filter that lets nothing pass, the search goes on; what it broke of the model is known all the same."""
    search = {"kind": "random-search", "tokens": 2, "steps": 6, "width": 4}
    held = {"kind": "perplexity-filter", "model": "bare", "threshold": 0}
    few = settings() | {"attempts": 3}
    behind = robustkd.attack(search, held, REQUESTS[:12], ["a"] * 12, **few)
    bare = robustkd.attack(search, MODEL, REQUESTS[:12], ["a"] * 12, **{**few, "models": None})
    told = behind.detection
    assert told.fooled.share == bare.success.mean() > 0
    assert (told.evaded.share, told.detected.share, told.false_alarms.share) == (0, 1, 1)
    assert bare.detection is None


def test_an_attack_that_no_guard_reads_has_no_such_columns() -> None:
    guard = {"kind": "perplexity-filter", "model": "bare", "threshold": 3}
    found = robustkd.attack(
        {"kind": "embedding", "eps": [0.1], "steps": 1, "restarts": 1}, guard, REQUESTS[:2], ["a"] * 2, **settings()
    )
    assert found.detection is None
