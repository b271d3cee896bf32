"""A guard that holds every request back does not make the model behind it forget: its requests withstand, and are not left out."""

from __future__ import annotations

from itertools import islice, permutations
from typing import Any

import pytest

import robustkd
from support.toy_language_model import toy_language_model

WORDS = ("say", "it", "hello", "I", "please", "cannot", "a", "b", "c", "d", "e", "f", "word", "open", "door")
MODEL = toy_language_model(WORDS, seed=1)
ROWS = [{"prompt": " ".join(words), "prefill": "a"} for words in islice(permutations(WORDS, 3), 0, 800, 40)]


def knows(requests: Any, outputs: list[str]) -> list[bool]:
    return [output.split()[-1:] != ["it"] for output in outputs]


@pytest.mark.parametrize(
    "guard",
    [
        {"kind": "perplexity-filter", "model": "bare", "threshold": 0},
        {"kind": "guard-model", "model": "bare", "threshold": 1e-6},
    ],
)
def test_what_the_model_knows_is_asked_of_the_model_itself(guard: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"judges": knows, "attempts": 1, "seed": 0}
    bare = robustkd.attack("direct", MODEL, ROWS, **settings)
    behind = robustkd.attack("direct", guard, ROWS, models={"bare": MODEL}, **settings)
    known = bare.outcome.eligible
    assert 0 < known.sum() < len(ROWS)
    assert (behind.outcome.eligible == known).all()
    assert behind.robust_accuracy == known.mean()
