"""Erase-and-check: a prompt is held back if it, or what remains of it when tokens are erased, is harmful to a reader.

    suffix:     x without its last i tokens,                          i = 0..d
    insertion:  x without i neighbouring tokens, wherever they stand,  i = 0..d
    infusion:   x without any i of its tokens,                        i = 0..d

    alarm(x) = max over these of the reader's alarm (see ``guard_model``)

A harmful request with an added sequence of at most d tokens is held back whenever the request alone would be: the request is one of those
that are checked. So no suffix that short gets through that the reader does not let pass anyway; longer ones and other wordings may. The
price are harmless prompts of which a part looks harmful.

Control: ``most: 0``: nothing is erased, a guard model is left.

Source: Kumar et al.: Certifying LLM safety against adversarial prompting (2023), arXiv:2309.02705, algorithm 1 and section 3. Their
reader is Llama 2 with a rubric, or a trained classifier; here it is any model that chats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from robustkd.defenses.text.guards.guard_model import GuardModel, GuardModelParams, GuardModelSettings, GuardModelTarget
from robustkd.defenses.text.guards.perplexity_filter import reading
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Mode = Literal["suffix", "insertion", "infusion"]


class EraseAndCheckSettings(GuardModelSettings):
    """What is erased, and what the reader is asked."""

    mode: Mode = Field("suffix", description="suffix: the last tokens; insertion: neighbouring ones; infusion: any")
    most: int = Field(20, ge=0, description="tokens that are erased at most (d of the paper)")


class EraseAndCheckTarget(GuardModelTarget):
    """A model behind a reader of prompts with tokens erased."""

    kind = "erase-and-check"
    Settings = EraseAndCheckSettings
    settings: EraseAndCheckSettings

    def alarm(self, texts: Sequence[str]) -> Tensor:
        """See ``GuardedTarget.alarm``: the highest of what remains; NaN where the reader cannot read all of it."""
        remaining = [self.remaining(text) for text in texts]
        alarms = super().alarm([part for parts in remaining for part in parts])
        return torch.stack([part.max() for part in alarms.split([len(parts) for parts in remaining])])

    def remaining(self, text: str) -> list[str]:
        """A text and, each once, what remains of it when tokens of the reader are erased; never nothing."""
        tokenizer = reading(self.reader or self.model).tokenizer
        spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        # What is between two tokens, such as a blank, belongs to the second: so an added text goes with the blank before it.
        cuts = [0, *(last for _, last in spans[:-1]), len(text)]
        pieces = [text[first:last] for first, last in pairwise(cuts)]
        kept = ("".join(pieces[place] for place in places) for places in kept_places(len(pieces), self.settings))
        return list(dict.fromkeys([text, *(part for part in kept if part.strip())]))


class EraseAndCheckParams(EraseAndCheckSettings, GuardModelParams):
    """The model, the one that reads, what is erased, and what the reader is asked."""


class EraseAndCheck(GuardModel):
    """Holds back prompts that are harmful, or are so when tokens are erased. The reader is a local model."""

    Params = EraseAndCheckParams
    target = EraseAndCheckTarget
    source = "Kumar et al. 2023, arXiv:2309.02705"


def kept_places(length: int, settings: EraseAndCheckSettings) -> Iterator[list[int]]:
    """The places of ``length`` tokens that remain, for each way of erasing one or more of them."""
    everything = range(length)
    for count in range(1, min(settings.most, length - 1) + 1):
        if settings.mode == "suffix":
            yield [*everything[: length - count]]
        elif settings.mode == "insertion":
            for first in range(length - count + 1):
                yield [*everything[:first], *everything[first + count :]]
        else:
            yield from map(list, combinations(everything, length - count))
