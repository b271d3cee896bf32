"""BEAST begins with as many first tokens as it keeps beams, as its authors' code does; the branches are for what comes behind."""

from __future__ import annotations

import numpy as np
import pytest

from robustkd import plugins
from robustkd.contracts import Judge, Prompts, ThreatModel
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from support.toy_language_model import toy_language_model


class Never(Judge):
    def complied(self, requests: Prompts, outputs: object) -> np.ndarray:
        return np.zeros(len(requests), dtype=bool)


@pytest.mark.parametrize(("branches", "looked_at"), [(1, 4 + 4 + 4), (2, 4 + 8 + 8)])
def test_as_many_beams_are_begun_as_are_kept(branches: int, looked_at: int) -> None:
    target, judges = toy_language_model(tuple("abcdefgh")), {"never": Never()}
    requests = Prompts({"prompt": ("a b",), "target": ("c",)}, np.zeros(1, dtype=np.int64))
    attack = plugins.make("attacks", {"kind": "beast", "tokens": 3, "beams": 4, "branches": branches})
    batch = prepare(target, requests, np.arange(1), judges)
    outcome = evaluate_prompt_attack(target, attack, batch, ThreatModel.by_prompt(1), judges).outcome
    next_words = 1 + 4 + 4
    assert outcome.forwards.tolist() == [next_words + looked_at + 1]  # the last is the attempt's
