"""Templates that trim, change or date what is said: the model is asked what it is asked in use, on every day, or it is refused."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from robustkd import plugins
from robustkd.contracts import Prompts, Request, RobustkdError, TargetError, ThreatModel
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from robustkd.judges.refusal_match import RefusalMatch
from robustkd.targets import CausalLMTarget, load_target, save_target
from support.toy_language_model import TEMPLATE, toy_language_model

WORDS = ("say", "it", "hello", "26", "Jul", "2024", "SAY")
SHOWN = "{{ m['content'] }}"


def spoken_to(template: str, **options: Any) -> CausalLMTarget:
    toy = toy_language_model(WORDS)
    toy.tokenizer.chat_template = template
    return CausalLMTarget(toy.module, toy.tokenizer, max_new_tokens=3, **options)


def in_use(target: CausalLMTarget, prompt: str) -> list[int]:
    """Tokens, as transformers makes them of the template."""
    said = [{"role": "user", "content": prompt}]
    ids: list[int] = target.tokenizer.apply_chat_template(said, add_generation_prompt=True)["input_ids"]
    return ids


def spelt(target: CausalLMTarget, prompt: str) -> str:
    text: str = target.tokenizer.decode(target.encode(prompt).ids)
    return text


@pytest.mark.parametrize("prompt", ["say it", " say it", "say it \n", "\n\n say it\t", "say\n\nit ", ""])
@pytest.mark.parametrize("trimmed", ["| trim", ".lstrip()", ".rstrip()"])
def test_blanks_that_a_template_leaves_out(prompt: str, trimmed: str) -> None:
    letters = {letter: number for number, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    backend = Tokenizer(models.BPE(letters, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    template = TEMPLATE.replace(SHOWN, f"{{{{ m['content'] {trimmed} }}}}")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, eos_token="z", pad_token="z")
    config = LlamaConfig(vocab_size=256, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    target = CausalLMTarget(LlamaForCausalLM(config).eval(), tokenizer, max_new_tokens=2)
    assert target.encode(prompt).ids == in_use(target, prompt) == target.chat.laid_out([prompt])[0]
    target.respond([Request(prompt)])


def test_suffixes_behind_a_template_that_ends_in_a_blank() -> None:
    target = spoken_to(TEMPLATE.replace(SHOWN, "{{ m['content'] | trim }}"))
    requests = Prompts({"prompt": ("say it",), "target": ("hello",)}, np.zeros(1, dtype=np.int64))
    judges = {"refusal": RefusalMatch(RefusalMatch.Params())}
    batch = prepare(target, requests, np.arange(1), judges)
    attack = plugins.make("attacks", {"kind": "gcg", "template": "say {request}\n", "tokens": 2, "steps": 1, "width": 2})
    found = evaluate_prompt_attack(target, attack, batch, ThreatModel.by_prompt(1), judges)
    assert found.outcome.forwards.tolist() > [1]
    assert found.transcripts[0].prompt.startswith("say say it ")


@pytest.mark.parametrize("changed", ["| upper", "| tojson", "| e", ".replace('\\n', ' ')", "[:4]"])
def test_a_template_that_changes_what_is_said(changed: str) -> None:
    with pytest.raises(TargetError, match="does not show a message once, as it is"):
        spoken_to(TEMPLATE.replace(SHOWN, f"{{{{ m['content'] {changed} }}}}"))


def test_a_request_that_a_template_treats_in_its_own_way() -> None:
    target = spoken_to(TEMPLATE.replace(SHOWN, "{{ m['content'] | replace('hello', 'it') }}"))
    assert target.respond([Request("say it")])
    with pytest.raises(TargetError, match="in a way of its own: 'say hello'"):
        target.respond([Request("say hello")])


DATED = "{{ strftime_now('%d %b %Y') }} " + TEMPLATE


def test_the_day_is_the_same_on_every_day(tmp_path: Path) -> None:
    target = spoken_to(DATED)
    assert spelt(target, "say it").startswith("26 Jul 2024")
    assert target.card()["date"] == "2024-07-26"
    other = spoken_to(DATED, date=datetime.date(2025, 7, 26))
    save_target(other, tmp_path)
    again = load_target(tmp_path)
    assert isinstance(again, CausalLMTarget)
    assert spelt(again, "say it").startswith("26 Jul <unk>")
    assert "date" not in spoken_to(TEMPLATE).card()


def test_a_message_from_the_system_that_a_template_does_not_know() -> None:
    """Gemma's and Mistral's raise an error of their own."""
    refusing = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TEMPLATE
    )
    with pytest.raises(RobustkdError, match="System role not supported") as refused:
        spoken_to(refusing, system="say it")
    assert refused.value.fix is not None
    assert refused.value.fix.startswith("leave out 'system'")
