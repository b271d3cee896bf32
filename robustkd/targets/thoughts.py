"""The answer of a model that thinks aloud, apart from its thought.

A judge is asked whether the *answer* gives what the request asks for. A thought weighs what to do and says little about what is done
in the end, so it is taken off before any judge reads the text. A thought that was cut off has no answer behind it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from robustkd.contracts import CutOff

MARKS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("[THINK]", "[/THINK]"),
)
"""How chat templates open and close a thought: those of DeepSeek-R1 and Qwen3, Seed-OSS, Magistral and others."""

CHANNEL_TOKENS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>")
"""The channels of the harmony format (gpt-oss): `analysis` and `commentary` are thoughts, `final` is the answer."""


def answer_of(output: str, marks: Sequence[tuple[str, str]] = MARKS) -> str | None:
    """The part of an output that answers; None where a thought was begun and not finished.

    Args:
        output: what the model wrote. Where its template itself opens the thought, only the closing mark stands in it.
        marks: the opening and closing mark of a thought, of each template that is known.
    """
    channels = list(_CHANNEL.finditer(output))
    if channels:
        final = next((found for found in reversed(channels) if found[1] == "final"), None)
        return None if final is None else output[final.end() :].partition("<|")[0].strip()
    rest = output
    for opening, closing in marks:
        _, closed, behind = rest.rpartition(closing)
        if closed:
            rest = behind
        elif opening in rest:
            return None
    # What was opened again behind the last thought was not finished.
    return None if any(opening in rest for opening, _ in marks) else rest.strip()


def is_cut_off(output: Any) -> bool:
    """Whether an output is a text whose answer was begun and not finished; of one that ended in a thought there is no answer."""
    return isinstance(output, CutOff) and answer_of(output) is not None


def closing(prompt: str, answer: str, marks: Sequence[tuple[str, str]] = MARKS) -> str:
    """What closes a thought that a prompt's template has opened, so that ``answer`` is an answer; empty where there is nothing to close.

    Nothing is closed where the answer brings a thought of its own, which it closes itself.
    """
    opening = opened_by(prompt, marks)
    mark = dict(marks).get(opening, "")
    if not mark or mark in answer:
        return ""
    start = "\n" if prompt.endswith("\n") else "\n\n"
    return f"{start}{mark}\n\n"


def opened_by(prompt: str, marks: Sequence[tuple[str, str]] = MARKS) -> str:
    """The opening mark that a prompt ends with, where its template begins the thought for the model; else an empty text."""
    return next((opening for opening, _ in marks if prompt.rstrip().endswith(opening)), "")
