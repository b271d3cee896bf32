"""A question to a language model that is answered with one of two words.

    p(yes) = p("Yes" | question) / (p("Yes" | question) + p("No" | question))

A model that is only served is asked, and what it writes has to begin with one of the two.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from robustkd.contracts import Filtered, GenerativeTarget, Request, Unanswered
from robustkd.lazy import torch
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import TooLong
from robustkd.targets.thoughts import answer_of


def yes_probability(model: GenerativeTarget, questions: Sequence[str], yes: str = "Yes", no: str = "No") -> np.ndarray:
    """(N,) float64 the probability of ``yes``; 1 or 0 of what a served model says, NaN where it says neither or cannot read a question.

    Raises:
        TargetError: a server gives no answer.
    """
    if isinstance(model, CausalLMTarget):
        # One at a time: beside longer ones it would be padded, which shows in the last digits.
        return np.array([_compared(model, question, yes, no) for question in questions], dtype=np.float64)
    return np.array([_said(text, yes, no) for text in model.respond([Request(text) for text in questions])], dtype=np.float64)


def fits(model: CausalLMTarget, question: str, yes: str = "Yes", no: str = "No") -> bool:
    """Whether the model can read a question and both answers to it."""
    try:
        for word in (yes, no):
            model.encode(question, completion=word, ends=False)
    except TooLong:
        return False
    return True


def _compared(model: CausalLMTarget, question: str, yes: str, no: str) -> float:
    if not fits(model, question, yes, no):
        return np.nan
    batch = model.batch([model.encode(question, completion=word, ends=False) for word in (yes, no)])
    with torch.no_grad():
        for_yes, for_no = model.token_logprobs(batch).cpu().double().sum(1).tolist()
    return float(1 / (1 + np.exp(for_no - for_yes)))


def _said(text: str, yes: str, no: str) -> float:
    """1 of a text that begins with yes, whatever its case and the signs before it, 0 of one with no, else NaN."""
    said = answer_of(text)
    if said is None or isinstance(text, Filtered | Unanswered):
        return np.nan
    begun = re.sub(r"^\W+", "", said).casefold()
    words = {word: re.match(rf"{re.escape(word.casefold())}\b", begun) for word in (yes, no)}
    return np.nan if all(words.values()) or not any(words.values()) else float(bool(words[yes]))
