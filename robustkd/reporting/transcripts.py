"""What was asked of a model under attack, and what it answered: a request beside the wording that decided it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Literal

import numpy as np

from robustkd.redaction import printable
from robustkd.reporting.formatting import counted

LONGEST = 900
"""Characters of a prompt or an answer on the page; the store has them whole."""

Change = Literal["same", "added", "removed"]


@dataclass(frozen=True, eq=False)
class PromptItem:
    """One attacked request.

    Attributes:
        label: its category.
        request, prompt, prefill: what is wanted, what was asked in the end, and how the answer was made to begin.
        output: the answer, where it is a text.
        attempts: made on it.
        broken: whether one succeeded; ``counted`` says whether the model could have complied at all,
            ``unjudged`` that no answer could be judged.
        verdicts: by judge, whether the output gives what the request asks for, None where it cannot be judged; the first judge's
            counts.
        before, after: (C, H, W) float32 in [0, 1], what a model draws for the request and for the prompt; None for texts.
        seed: of the campaign.
        system, turns: the request's own message of the system, and the conversation before the prompt.
    """

    defense: str
    attack: str
    seed: int
    label: str
    request: str
    prompt: str
    output: str
    attempts: int
    broken: bool
    prefill: str = ""
    counted: bool = True
    unjudged: bool = False
    verdicts: Mapping[str, bool | None] = field(default_factory=dict)
    before: np.ndarray | None = None
    after: np.ndarray | None = None
    system: str = ""
    turns: Sequence[Sequence[str]] = ()

    @property
    def outcome(self) -> str:
        """What happened, in a few words."""
        if not self.counted:
            return "not counted"
        if self.broken:
            return f"broken at attempt {self.attempts}"
        if self.unjudged:
            return f"not judged, {counted(self.attempts, 'attempt')}"
        return f"held, {counted(self.attempts, 'attempt')}" if self.attempts else "held, no attempt"

    @property
    def diff(self) -> list[tuple[Change, str]]:
        """The prompt word by word: what of it is the request's, what the attack added, and what it left out."""
        return changes(self.request, self.prompt)

    @property
    def conversation(self) -> str:
        """What was said before the prompt, a message a line: the request's own system message, and earlier turns."""
        lines = [f"system: {self.system}"] if self.system else []
        for asked, answer in self.turns:
            lines += [f"user: {asked}", f"assistant: {answer}"]
        return "\n".join(lines)

    @property
    def said_before(self) -> str:
        """The conversation before the prompt, as far as it is shown."""
        return printable(self.conversation, LONGEST)

    @property
    def begun(self) -> str:
        """How the answer was made to begin, as far as it is shown."""
        return printable(self.prefill, LONGEST)

    @property
    def said(self) -> str:
        """The answer, as far as it is shown."""
        return printable(self.output, LONGEST)


def changes(request: str, prompt: str, longest: int = LONGEST) -> list[tuple[Change, str]]:
    """Pieces of ``prompt`` that are in ``request`` too, that are not, and pieces of ``request`` that are missing, in order.

    Args:
        longest: characters of both that are looked at.
    """
    old, new = printable(request, longest).split(" "), printable(prompt, longest).split(" ")
    blocks = SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
    edges = [(0, 0, 0), *((block.a, block.b, block.size) for block in blocks)]
    found: list[tuple[Change, str]] = []
    for (a, b, size), (next_a, next_b, next_size) in pairwise(edges):
        pieces: tuple[tuple[Change, list[str]], ...] = (
            ("removed", old[a + size : next_a]),
            ("added", new[b + size : next_b]),
            ("same", new[next_b : next_b + next_size]),
        )
        found += [(what, " ".join(words)) for what, words in pieces if words]
    return found
