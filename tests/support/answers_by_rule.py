"""A language model that only answers, by a rule, and notes what it is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from robustkd.contracts import GenerativeTarget, Request


class ByRule(GenerativeTarget):
    """It has a conversation, and neither tokens nor probabilities, as a served model has none."""

    kind = "by-rule"
    capabilities = frozenset({"respond", "conversation"})

    def __init__(self, rule: Callable[[Request], str]) -> None:
        self.module, self.rule, self.noted = torch.nn.Identity(), rule, list[Request]()

    def respond(self, asked: Sequence[Request]) -> list[str]:
        self.noted += asked
        return [self.rule(question) for question in asked]

    def card(self) -> dict[str, Any]:
        return {"target": self.kind}

    @classmethod
    def from_card(cls, card: dict[str, Any]) -> ByRule:
        raise NotImplementedError
