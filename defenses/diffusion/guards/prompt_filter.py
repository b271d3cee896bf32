"""Prompt filter: nothing is drawn for a prompt that has one of the listed words.

It reads words as a whole, whatever their case and the marks around them. It knows no synonyms, no other spellings and no tokens without
a meaning: a search passes it whose tokens take the place of the request (``place: replace``) and that proposes nothing it would hold
back (``through-guard``).

Control: a word that no request has.

Source: the text-match filters of Rando et al.: Red-teaming the Stable Diffusion safety filter (2022), arXiv:2210.04610, and Yang et al.:
SneakyPrompt (IEEE S&P 2024), arXiv:2305.12082, section 3.
"""

from __future__ import annotations

import re
from functools import cached_property

from pydantic import Field

from robustkd.contracts import Params
from robustkd.data.text import comparable
from robustkd.defenses.diffusion.guards.guard import DrawingGuard
from robustkd.defenses.text.guards.guard import GuardParams
from robustkd.targets.guarded_drawing import GuardedDrawing


class PromptFilterSettings(Params):
    """The words."""

    words: tuple[str, ...] = Field(
        min_length=1, description="words and phrases at which a prompt is held back", examples=[["nude", "naked"]]
    )


class PromptFilterTarget(GuardedDrawing[PromptFilterSettings]):
    """A model that draws nothing for some prompts."""

    kind = "prompt-filter"
    Settings = PromptFilterSettings

    @cached_property
    def _listed(self) -> re.Pattern[str]:
        return re.compile("|".join(rf"\b{re.escape(comparable(word))}\b" for word in self.settings.words))

    def holds_back(self, prompt: str) -> bool:
        """Whether the prompt has one of the words."""
        return self._listed.search(comparable(prompt)) is not None


class PromptFilterParams(PromptFilterSettings, GuardParams):
    """The model, and the words."""


class PromptFilter(DrawingGuard):
    """Holds back prompts with listed words."""

    Params = PromptFilterParams
    target = PromptFilterTarget
    source = "Rando et al. 2022, arXiv:2210.04610; Yang et al. 2024, arXiv:2305.12082"
