"""A language model in bfloat16, as ``causal-lm`` loads it on CUDA: ``refusal-ablation`` said that no direction can be taken out of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robustkd import plugins
from robustkd.contracts import Prompts, TargetError
from robustkd.contracts.random import SampleRng
from robustkd.targets import CausalLMTarget
from support.toy_language_model import toy_language_model

PROMPTS = ("a b c", "a b f", "a b g", "a b i", "l m", "l b", "l c", "l f")
COUNT = len(PROMPTS)


def requests() -> Prompts:
    columns = {
        "role": ("forbidden",) * 4 + ("task",) * 4,
        "prompt": PROMPTS,
        "response": ("d e",) * 4 + ("n",) * 4,
        "refusal": ("sorry no",) * 4 + ("",) * 4,
        "target": ("d",) * 4 + ("n",) * 4,
    }
    return Prompts(columns, np.zeros(COUNT, dtype=np.int64))


def model(dtype: torch.dtype) -> CausalLMTarget:
    target = toy_language_model((*"abcdefghijklmnop", "sorry", "no"))
    target.module.to(dtype)
    return target


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_directions_are_found_in_every_precision(dtype: torch.dtype, random: bool) -> None:
    attack = plugins.make("attacks", {"kind": "refusal-ablation", "kl": 1e9, "random": random})
    fitted = attack.fit(model(dtype), requests(), SampleRng(0, torch.arange(COUNT), "fit"))
    assert len(list(fitted.weights(model(dtype)))) == 2  # a block, and two tokens behind the request


def test_a_model_that_writes_to_its_stream_in_another_way_is_still_told() -> None:
    target = model(torch.bfloat16)
    for block in target.module.model.layers:  # a constant beside the matrices
        block.register_forward_hook(lambda part, given, output: output + 0.1)
    attack = plugins.make("attacks", {"kind": "refusal-ablation", "kl": 1e9})
    with pytest.raises(TargetError, match="cannot be taken out of"):
        attack.fit(target, requests(), SampleRng(0, torch.arange(COUNT), "fit"))
