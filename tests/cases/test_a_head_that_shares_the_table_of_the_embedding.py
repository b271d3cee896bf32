"""A model whose head is tied to its embedding is asked as it was fine-tuned, with the same table in both places."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robustkd import plugins
from robustkd.contracts import Prompts
from robustkd.contracts.random import SampleRng
from support.toy_language_model import toy_language_model

ROWS = {
    "role": ("forbidden", "forbidden", "task", "task"),
    "prompt": ("a b", "a c", "d e", "d f"),
    "response": ("g h", "g i", "e", "f"),
    "target": ("g", "g", "e", "f"),
}


@pytest.mark.parametrize("kind", ["relearning", "harmful-finetuning"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_model_that_is_asked_is_the_one_that_was_fine_tuned(kind: str, tied: bool) -> None:
    target = toy_language_model(tuple("abcdefghi"), tie_word_embeddings=tied)
    before = target.module.lm_head.weight.clone()
    attack = plugins.make("attacks", {"kind": kind, "steps": [2, 4], "lr": 0.01})
    fitted = attack.fit(target, Prompts(ROWS, np.zeros(4, dtype=np.int64)), SampleRng(0, torch.arange(4), "fit"))
    for weights in fitted.weights(target):
        module = target.with_weights(weights).module
        assert not torch.equal(module.lm_head.weight, before)
        assert torch.equal(module.lm_head.weight, module.get_input_embeddings().weight) == tied
    assert torch.equal(target.module.lm_head.weight, before)
