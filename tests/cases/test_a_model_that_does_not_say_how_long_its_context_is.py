"""Bloom, MPT and Mamba have no max_position_embeddings, and a tokeniser may have more tokens than its model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from robustkd import plugins
from robustkd.contracts import FitContext, Request, RobustkdError, ThreatModel
from robustkd.targets import CausalLMTarget, load_target, save_target
from support.attention_kinds import KINDS, model_of
from support.model_folders import language_model

WORDS = tuple(f"w{number}" for number in range(20))


def loaded(place: Path, **params: Any) -> Any:
    context = FitContext(None, None, (), 2, ThreatModel.by_prompt(1), 0, torch.device("cpu"), place)
    return plugins.make("defenses", {"kind": "causal-lm", **params}).fit(context)


def folder_of(kind: str, place: Path, monkeypatch: pytest.MonkeyPatch, **config: Any) -> Path:
    monkeypatch.setitem(KINDS, kind, {**KINDS[kind], "max_position_embeddings": None, **config})
    made = model_of(kind, WORDS, context=64)
    made.module.save_pretrained(place)
    made.tokenizer.save_pretrained(place)
    without = json.loads((place / "config.json").read_text())
    without.pop("max_position_embeddings", None)
    (place / "config.json").write_text(json.dumps(without))
    return place


@pytest.mark.parametrize(("kind", "config", "length"), [("Mpt", {"max_seq_len": 99}, 99), ("Bloom", {"seq_length": 77}, 77)])
def test_what_the_configuration_calls_it(
    kind: str, config: dict[str, Any], length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = loaded(tmp_path, path=folder_of(kind, tmp_path / "model", monkeypatch, **config))
    assert target.chat.context == length
    assert target.respond([Request("w1 w2")])


@pytest.mark.parametrize("kind", ["Mamba", "RecurrentGemma"])
def test_what_the_user_says_where_nothing_else_does(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(kind, tmp_path / "model", monkeypatch)
    with pytest.raises(RobustkdError, match="says how many tokens it takes") as refused:
        loaded(tmp_path, path=folder)
    assert refused.value.fix is not None
    assert "'context'" in refused.value.fix
    target = loaded(tmp_path, path=folder, context=40)
    (tmp_path / "saved").mkdir()
    save_target(target, tmp_path / "saved")
    again = load_target(tmp_path / "saved")
    assert isinstance(again, CausalLMTarget)
    assert target.chat.context == again.chat.context == 40
    assert again.respond([Request("w1 w2")]) == target.respond([Request("w1 w2")])


def test_what_the_tokenizer_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of("Mamba", tmp_path / "model", monkeypatch)
    stated = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(stated | {"model_max_length": 48}))
    assert loaded(tmp_path, path=folder).chat.context == 48


def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path: Path) -> None:
    folder = language_model(tmp_path / "model")
    narrow = AutoModelForCausalLM.from_pretrained(folder)
    narrow.resize_token_embeddings(6)
    narrow.save_pretrained(folder)
    with pytest.raises(RobustkdError, match=r"2 tokens that the model has no embedding of \('it' is number 6"):
        loaded(tmp_path, path=folder)


def test_no_word_of_what_transformers_gives_up(tmp_path: Path) -> None:
    """It warns of each name that it is going to drop."""
    target = loaded(tmp_path, path=language_model(tmp_path / "model"))
    batch = target.batch([target.encode("say it", "hello it")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target.respond([Request("say it")])
        target.completion_logprob(batch, prefix=target.prefix(batch.ids[0, :3]))
