"""A language model that answers each request with the text that a file gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from robustkd.contracts import CampaignPath, Defense, FitContext, GenerativeTarget, Modality, Params, Prompts, Request

PLUGINS = {
    "defenses": {"scripted": "support.scripted_answers:Scripted"},
    "targets": {"scripted": "support.scripted_answers:ScriptedTarget"},
}


class ScriptedTarget(GenerativeTarget):
    kind = "scripted"

    def __init__(self, answers: dict[str, str]) -> None:
        self.module, self.answers = torch.nn.Linear(1, 1), answers

    def respond(self, asked: Sequence[Request]) -> list[str]:
        return [self.answers[question.prompt] for question in asked]

    def card(self) -> dict[str, Any]:
        return {"target": self.kind, "answers": self.answers}

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> ScriptedTarget:
        return cls(card["answers"])


class ScriptedParams(Params):
    answers: CampaignPath


class Scripted(Defense):
    Params = ScriptedParams
    modalities: ClassVar[tuple[Modality, ...]] = ("text",)
    uses_data = False
    uses_threat = False

    def fit(self, context: FitContext[Prompts]) -> ScriptedTarget:
        return ScriptedTarget(json.loads(self.params.answers.read_text(encoding="utf-8")))
