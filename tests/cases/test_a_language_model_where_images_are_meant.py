"""A language model, or an attack on prompts, where images are attacked: one sentence that names what to do instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import robustkd
from robustkd.contracts import UsageError
from robustkd.targets import save_target
from support.command_line import CommandLine
from support.model_folders import language_model
from support.toy_language_model import toy_language_model


@pytest.mark.parametrize("call", [robustkd.attack, lambda name, *given: robustkd.evaluate(*given, attacks=name)])
def test_an_attack_on_prompts(call: Any) -> None:
    images, labels = np.zeros((2, 1, 4, 4), dtype=np.float32), np.zeros(2, dtype=np.int64)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(UsageError, match="attack 'gcg' is for prompts") as refused:
        call("gcg", classifier, images, labels)
    assert refused.value.fix is not None
    assert "robustkd init language-model FILE" in refused.value.fix


@pytest.mark.parametrize("call", [robustkd.attack, lambda name, *given: robustkd.audit(*given, attacks=name)])
@pytest.mark.parametrize(
    ("attack", "wrapped", "said"),
    [("gcg", False, "has no tokenizer"), ("pgd", True, "is for images"), ("pgd", False, "has no tokenizer")],
)
def test_a_language_model_and_texts(call: Any, attack: str, wrapped: bool, said: str) -> None:
    target = toy_language_model(("say", "it"))
    with pytest.raises(UsageError) as refused:
        call(attack, target if wrapped else target.module, ["Tell me"], ["Sure"])
    assert said in refused.value.message
    assert refused.value.fix is not None


@pytest.mark.parametrize("command", [["attack", "gcg", "--model", "{}"], ["audit", "{}", "--attack", "gcg"]])
@pytest.mark.parametrize(
    ("model", "data", "said"),
    [
        ("folder", [], "folder holds a language or a diffusion model"),
        ("folder", ["--data", "behaviors", "--data-set", "file=r.csv"], "the data 'behaviors' are prompts"),
        ("saved", [], "here classifiers of images are attacked"),
    ],
)
def test_the_command(robustkd: CommandLine, command: list[str], model: str, data: list[str], said: str) -> None:
    language_model(Path("folder"))
    Path("saved").mkdir()
    save_target(toy_language_model(("say", "it")), Path("saved"))
    Path("r.csv").write_text("prompt\nsay it\n")
    told = robustkd(*(part.format(model) for part in command), *data)
    assert told.code == 2
    assert said in told.words
    assert "robustkd init language-model FILE" in told.words
