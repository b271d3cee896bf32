"""A tokenizer that begins each text with a token of its own, and a chat template that leaves it out: that is told of."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from tokenizers import processors

from robustkd.targets import CausalLMTarget
from support.toy_language_model import TEMPLATE, toy_language_model

RAW = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
WARNED = "begins a text with <s>, and the chat template does not"


def model(template: str, adds: bool = True) -> CausalLMTarget:
    toy = toy_language_model(("say", "it", "<s>"))
    tokenizer = toy.tokenizer
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.chat_template = template
    if adds:
        begun = [("<s>", tokenizer.convert_tokens_to_ids("<s>"))]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=begun)
    return CausalLMTarget(toy.module, tokenizer, max_new_tokens=3)


@pytest.mark.parametrize(
    ("template", "prompt", "adds", "warned"),
    [
        (RAW, "say it", True, True),
        (TEMPLATE, "say it", True, True),
        ("{{ bos_token }} " + RAW, "say it", True, False),
        (RAW, "<s> say it", True, False),  # as WildGuard's, whose text has it
        (RAW, "say it", False, False),
    ],
)
def test_it_is_told_once_where_no_text_begins_so(
    template: str, prompt: str, adds: bool, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    target = model(template, adds)
    with caplog.at_level(logging.WARNING):
        target.encode(prompt)
        target.encode(prompt, "say", system="" if template == RAW else "it")
    assert caplog.text.count(WARNED) == warned


def test_the_recipe_for_harmbench_s_classifier_begins_with_it_and_has_the_blank() -> None:
    page = (Path(__file__).parents[2] / "docs" / "language-models.md").read_text()
    (template,) = re.findall(r'chat_template: "(.*)"', page)
    target = model(template)
    assert target.tokenizer.convert_ids_to_tokens(target.encode("say it", "it").ids)[:4] == ["<s>", "say", "it", "it"]
    assert target.chat.blank == " "
