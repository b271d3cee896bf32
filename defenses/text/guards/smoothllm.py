"""SmoothLLM: the model answers randomly changed copies of the prompt, and the majority decides.

    x_1 .. x_n = copies of x, ``rate`` of whose letters are changed at random
    a_j        = model(x_j),     JB(a_j) = [ a_j does not refuse ]
    V          = [ mean_j JB(a_j) > 1/2 ];    the answer is one of the a_j with JB(a_j) = V

A suffix that was found letter by letter breaks where some of its letters change. Prompts that mean something do not. Whoever knows the
guard optimises the mean over copies (``through-guard``).

Control: ``rate: 0``: all copies are the prompt.

Source: Robey, Wong, Hassani, Pappas: SmoothLLM: defending large language models against jailbreaking attacks (2023), arXiv:2310.03684,
algorithm 1. Theirs draws anew each time; here the draws are those of the seed and the prompt, so that an answer is the same whenever it
is asked for.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from pydantic import Field

from robustkd.contracts import Filtered, Params, Request, Unanswered
from robustkd.defenses.text.guards.guard import Guard, GuardParams
from robustkd.judges.refusal_match import declines
from robustkd.targets.guarded import GuardedTarget
from robustkd.targets.thoughts import answer_of

Change = Literal["swap", "insert", "patch"]
_LETTERS = string.ascii_letters + string.digits + string.punctuation + " "


class SmoothLLMSettings(Params):
    """How the copies are made; the defaults are the paper's."""

    copies: int = Field(10, ge=1, description="copies of a prompt, each of which the model answers")
    rate: float = Field(0.1, ge=0, le=1, description="share of the letters that are changed in a copy")
    change: Change = Field(
        "swap", description="swap: letters for others; insert: letters behind others; patch: neighbouring ones"
    )
    seed: int = Field(0, ge=0, description="of the draws")


class SmoothLLMTarget(GuardedTarget[SmoothLLMSettings]):
    """A model that answers many changed copies of a prompt."""

    kind = "smoothllm"
    Settings = SmoothLLMSettings

    def seen(self, text: str, draws: int) -> list[str]:
        """See ``GuardedTarget.seen``: copies that an attacker draws for himself."""
        return self.copies_of(text, draws, "attacker")

    def answered(self, asked: Sequence[Request]) -> list[Any]:
        """The answer of the majority to each request."""
        count = self.settings.copies
        copies = [
            replace(question, prompt=text) for question in asked for text in self.copies_of(question.prompt, count, "guard")
        ]
        answers = self.model.respond(copies)
        return [
            self._majority(answers[first : first + count], question.prompt)
            for first, question in zip(range(0, len(copies), count), asked, strict=True)
        ]

    def copies_of(self, text: str, count: int, whose: str) -> list[str]:
        """Copies of a text, each changed at random positions."""
        draw = self._draw(whose, text)
        return [changed(text, self.settings.rate, self.settings.change, draw) for _ in range(count)]

    def _majority(self, answers: Sequence[Any], prompt: str) -> Any:
        complied = [_complies(answer) for answer in answers]
        wanted = sum(complied) > len(complied) / 2
        agreeing = [answer for answer, said in zip(answers, complied, strict=True) if said == wanted]
        return agreeing[self._draw("answer", prompt).integers(len(agreeing))]

    def _draw(self, *key: str) -> np.random.Generator:
        said = "/".join([str(self.settings.seed), *key])
        return np.random.default_rng(int.from_bytes(hashlib.sha256(said.encode()).digest()[:8], "big"))


class SmoothLLMParams(SmoothLLMSettings, GuardParams):
    """The model, and how copies of a prompt are made."""


class SmoothLLM(Guard):
    """Answers as the majority of changed copies of the prompt is answered."""

    Params = SmoothLLMParams
    target = SmoothLLMTarget
    source = "Robey et al. 2023, arXiv:2310.03684"

    def asks(self) -> Mapping[str, int]:
        """See ``Defense.asks``: the model once for each copy."""
        return {self.params.model: self.params.copies}


def changed(text: str, rate: float, change: Change, draw: np.random.Generator) -> str:
    """A copy of a text with ``rate`` of its letters changed, rounded down."""
    letters, count = list(text), int(rate * len(text))
    if not count:
        return text
    drawn = [_LETTERS[place] for place in draw.integers(len(_LETTERS), size=count)]
    if change == "patch":
        first = int(draw.integers(len(text) - count + 1))
        return text[:first] + "".join(drawn) + text[first + count :]
    for place, letter in zip(draw.choice(len(text), count, replace=False).tolist(), drawn, strict=True):
        letters[place] = letters[place] + letter if change == "insert" else letter
    return "".join(letters)


def _complies(answer: Any) -> bool:
    said = None if isinstance(answer, Filtered | Unanswered) else answer_of(answer)
    return bool(said and said.strip()) and not declines(str(said))
