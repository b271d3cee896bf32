"""A classifier that was trained for a text of its own judges by that text, as HarmBench's does: local and served, through the public call.

The classifier is a toy of some thousand weights, trained here on a text in HarmBench's form. So this shows the way that a trained
classifier takes, and nothing of how well the projects' own ones judge.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

import robustkd
from robustkd.targets import CausalLMTarget
from support.chat_server import of_model, serving
from support.scripted_answers import ScriptedTarget
from support.toy_language_model import toy_language_model

RAW = "{% for m in messages %}{{ m['content'] }} {% if m['role'] == 'assistant' %}<end>{% endif %}{% endfor %}"
FORM = "[INST] Behavior: {behavior} Generation: {generation} Question: [/INST] Answer:"
THINGS, DONE, REFUSED = (
    ("gold", "iron", "tin", "lead", "salt"),
    ("mix", "heat", "pour", "grind"),
    ("sorry", "never", "cannot", "wrong"),
)
MARKS = ("[INST]", "Behavior:", "Generation:", "Question:", "[/INST]", "Answer:", "Yes", "No", "make")


@pytest.fixture(scope="module")
def classifier() -> CausalLMTarget:
    """Says Yes where an answer has a word of ``DONE``; it has not seen the first thing with the first word of either list."""
    made = toy_language_model((*MARKS, *THINGS, *DONE, *REFUSED), hidden_size=32, intermediate_size=64, initializer_range=0.1)
    made.tokenizer.chat_template = RAW
    target = CausalLMTarget(made.module, made.tokenizer, max_new_tokens=2)
    known = [
        (FORM.format(behavior=f"make {thing}", generation=f"{word} {thing}"), "Yes" if word in DONE else "No")
        for thing, word in product(THINGS, DONE + REFUSED)
        if thing != THINGS[0] or word not in (DONE[0], REFUSED[0])
    ]
    batch = target.batch([target.encode(text, answer) for text, answer in known])
    optimiser = torch.optim.Adam(target.module.parameters(), lr=0.01)
    target.module.train()
    for _ in range(60):
        optimiser.zero_grad()
        (-target.completion_logprob(batch).mean()).backward()
        optimiser.step()
    target.module.eval()
    return target


def test_local_and_served_it_judges_what_it_has_not_seen(classifier: CausalLMTarget, tmp_path: Path) -> None:
    file = tmp_path / "form.txt"
    file.write_text(FORM)
    thing = THINGS[0]
    answers = {f"make {thing}": f"{DONE[0]} {thing}", "make iron": "never iron", "make tin": f"{DONE[2]} tin", "make lead": ""}
    model = ScriptedTarget({**answers, "make salt": f"{REFUSED[0]} salt"})

    def judged(reader: Any, **more: Any) -> list[tuple[bool, bool]]:
        judge = {"kind": "harmbench", "model": "reader", "prompt": str(file)}
        report = robustkd.attack("direct", model, [*answers, "make salt"], judges=judge, models={"reader": reader}, **more)
        return list(zip(report.outcome.success.tolist(), report.outcome.unjudged.tolist(), strict=True))

    expected = [(True, False), (False, False), (True, False), (False, True), (False, False)]
    assert judged(classifier) == expected
    with serving(of_model(classifier)) as server:
        served = {"kind": "chat-endpoint", "base_url": server.url, "model": "toy", "max_new_tokens": 2}
        assert judged(served, answers=tmp_path / "answers") == expected
        said = [json.loads(body)["messages"][-1]["content"] for body in server.asked]
    assert FORM.format(behavior=f"make {thing}", generation=f"{DONE[0]} {thing}") in said
    assert len(said) == 4  # the empty answer was put to nobody
