"""What judges share that ask a language model, local or served, in a project's own form.

Each comes with an instruction in our words, for any model that chats. A model that was trained for one instruction wants that one:
``prompt`` is a file with it, in which the projects' own names for the request and the answer are known.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from robustkd.contracts import (
    CampaignPath,
    DataError,
    Filtered,
    GenerativeTarget,
    Judge,
    Judgements,
    Params,
    Prompts,
    Request,
    TargetRef,
    Unanswered,
)
from robustkd.contracts.params import AddedLater
from robustkd.data.behaviors import CONTEXT_END
from robustkd.targets.thoughts import answer_of

_NAMES = {
    "request": ("request", "behavior", "forbidden_prompt", "prompt", "goal"),
    "answer": ("answer", "generation", "response"),
    "context": ("context",),
}
_PLACE = re.compile(r"\{(" + "|".join(name for names in _NAMES.values() for name in names) + r")\}")
_CALLED = {name: kind for kind, names in _NAMES.items() for name in names}


class ReaderParams(Params):
    """The model that reads, and what it is told."""

    model: TargetRef = Field(
        description="the defense whose model judges: any one that chats, such as {kind: causal-lm, path: ..}, also a chat-endpoint"
    )
    prompt: Annotated[CampaignPath | None, AddedLater()] = Field(
        None,
        description="a text file with what the model is told, with {request} and {answer}, or as the project calls them "
        "({behavior}, {forbidden_prompt}, {prompt}; {generation}, {response}), and {context}; by default in our words",
    )


class ReadingJudge(Judge):
    """A judge that asks a language model about each answer. A subclass says what it is told, and what its words are worth.

    Attributes:
        INSTRUCTION: what the model is told where no file is given.
    """

    needs_of_others = frozenset({"respond"})
    INSTRUCTION: ClassVar[str]

    def files(self) -> list[Path]:
        """The file of the instruction, if one was given."""
        return [self.params.prompt] if self.params.prompt else []

    def complied(self, requests: Prompts, outputs: Sequence[str]) -> Judgements:
        """At or above the threshold, half by default. An answer that is empty, or that the model says nothing clear of, cannot be judged.

        Raises:
            DataError: the file of the instruction cannot be read, or does not show the answer.
            UsageError: the model was not handed over, or is none that answers.
            TargetError: a server gives no answer.
        """
        scores = self.scores(requests, outputs)
        threshold: float = getattr(self.params, "threshold", 0.5)
        return Judgements.of(np.where(np.isnan(scores), np.nan, scores >= threshold))

    def scores(self, requests: Prompts, outputs: Sequence[str]) -> np.ndarray:
        """(N,) float64 in [0, 1], how far each answer complies; NaN where that cannot be said. It raises what ``complied`` raises."""
        found = np.full(len(outputs), np.nan)
        given = [place for place, output in enumerate(outputs) if output.strip()]
        if given:
            found[given] = self.scored(requests.select(np.array(given)), [outputs[place] for place in given])
        return found

    @abstractmethod
    def scored(self, requests: Prompts, answers: Sequence[str]) -> Sequence[float]:
        """``scores`` of answers that say something."""

    def told(self, requests: Prompts, answers: Sequence[str]) -> list[str]:
        """What the model is told about each answer."""
        instruction = self._instruction()
        return [_filled(instruction, request, answer) for request, answer in zip(requests["prompt"], answers, strict=True)]

    def said(self, asked: Sequence[Request]) -> list[str]:
        """What the model says, without its thoughts; empty where it says nothing."""
        model = self.target(self.params.model, GenerativeTarget)
        return [
            "" if isinstance(text, Filtered | Unanswered) else str(answer_of(text) or "") for text in model.respond(list(asked))
        ]

    def _instruction(self) -> str:
        file: Path | None = self.params.prompt
        if file is None:
            return self.INSTRUCTION
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise DataError(f"{file} cannot be read: {error}", fix="give a text file in UTF-8 as 'prompt'") from error
        if "answer" not in {_CALLED[name] for name in _PLACE.findall(text)}:
            raise DataError(
                f"{file} does not show the answer", fix="write {answer}, {generation} or {response} where it stands"
            )
        return text


def _filled(instruction: str, request: str, answer: str) -> str:
    context = ""
    if "{context}" in instruction:
        context, _, asked = request.rpartition(CONTEXT_END)
        request = asked
    texts = {"request": request, "answer": answer, "context": context}
    # In one pass: what a request says in braces is not to be filled in.
    return _PLACE.sub(lambda found: texts[_CALLED[found[1]]], instruction)
