"""Thinking is switched off by an option of the template, and answers that are cut off are told of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import robustkd
from robustkd.campaigns.file import spec
from robustkd.campaigns.file.campaign import Campaign
from robustkd.campaigns.plan import plan
from robustkd.campaigns.store.identity import plugin_identity
from robustkd.contracts import CheckContext, CutOff, PromptBatch, Prompts, Request, Responses, ThreatModel
from robustkd.evaluation.checks import make_check
from robustkd.targets import load_target
from support.model_folders import TEXT, language_model
from support.toy_language_model import TEMPLATE

THINKS = TEMPLATE.replace(
    "<assistant> {% endif %}",
    "<assistant> {% if not (enable_thinking is defined and enable_thinking) %}hello {% endif %}{% endif %}",
)
CAMPAIGN = TEXT.replace("path: model", "path: model, max_new_tokens: 3OPTIONS").replace("checks: none\n", "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    settings = language_model(tmp_path / "model") / "chat_template.jinja"
    settings.write_text(THINKS)
    (tmp_path / "requests.csv").write_text("prompt,target\nsay it,hello\nsay hello,it\n")
    return tmp_path


def campaign(folder: Path, options: str = "") -> Campaign:
    return spec.from_text(CAMPAIGN.replace("OPTIONS", options), "c.yaml", folder)


def run(folder: Path, options: str = "") -> robustkd.Results:
    file = folder / "c.yaml"
    file.write_text(CAMPAIGN.replace("OPTIONS", options))
    return robustkd.run(file, folder / f"out{len(options)}", workers=0, track=False)


def test_an_option_reaches_the_template_the_identity_and_the_stored_model(folder: Path) -> None:
    told = ", chat_template_kwargs: {enable_thinking: true}"
    without, with_it = ({cell.id for cell in plan.build(campaign(folder, options)).cells} for options in ("", told))
    assert not without & with_it
    results = run(folder, told)
    assert [cell.status for cell in results.cells] == ["done"]
    (card,) = (folder / f"out{len(told)}").glob("cells/*/*/card.json")
    target = load_target(card.parent)
    assert target.chat.options == {"enable_thinking": True}
    plain = load_target(next((folder / "out0").glob("cells/*/*/card.json")).parent) if run(folder) else None
    assert len(plain.encode("say it").ids) == len(target.encode("say it").ids) + 1
    assert target.with_module(target.module).chat.options == target.chat.options


def test_without_options_the_identity_is_what_it_was(folder: Path) -> None:
    use = campaign(folder).defenses["elsewhere"]
    assert "chat_template_kwargs" not in plugin_identity(use.kind, use.plugin).params


@pytest.mark.parametrize("name", ["enable_thinkin", "tools", "add_generation_prompt"])
def test_an_option_that_the_template_does_not_have(folder: Path, name: str) -> None:
    (row,) = run(folder, f", chat_template_kwargs: {{{name}: true}}").defenses
    assert f"the chat template has no option '{name}'" in (row.error or "")


def test_answers_that_are_cut_off_are_told_of(folder: Path) -> None:
    results = run(folder)
    (row,) = results.defenses
    (found,) = [finding for finding in row.checks if finding.name == "answers-cut-off"]
    stored = [
        json.loads(line)
        for file in (folder / "out0").glob("cells/*/*/transcripts.jsonl")
        for line in file.read_text().splitlines()
    ]
    target = load_target(next((folder / "out0").glob("cells/*/*/card.json")).parent)
    answers = target.respond([Request(line["prompt"]) for line in stored])
    cut = [line["cut_off"] for line in stored]
    assert cut == [isinstance(answer, CutOff) for answer in answers]
    assert {True, False} == set(cut)
    assert found.evidence["cut_off"]["direct"] == np.mean([line["cut_off"] for line in stored])


@pytest.mark.parametrize(
    ("outputs", "share"), [([CutOff("Sure, here")] * 3 + ["No."], 0.75), ([CutOff("<think> well")] * 4, 0.0)]
)
def test_a_thought_that_was_cut_off_is_no_answer(outputs: list[str], share: float) -> None:
    requests = Prompts({"prompt": ("tell",) * 4}, np.zeros(4, dtype=np.int64))
    answered = Responses(requests, outputs, np.zeros(4, dtype=bool))
    batch = PromptBatch(requests, torch.arange(4), answered, np.ones(4, dtype=bool))
    found = make_check("answers-cut-off").run(CheckContext(None, batch, ThreatModel.by_prompt(1), {}, 0))
    assert (found.evidence["cut_off"]["forbidden requests"], found.fired) == (share, share > 0.1)
