"""Where a suffix stands in the chat, and which ids are a text there.

A judged prompt is a text, and the target makes its own tokens of it. Ids that do not come back from that (a tokeniser merges
neighbours, a template strips blanks) are worth nothing: they are sorted out before anything is spent on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustkd.lazy import torch
from robustkd.targets.causal_lm import CausalLMTarget

if TYPE_CHECKING:
    from torch import Tensor

Texts = Sequence[Sequence[str | None]]
"""(B, C) the prompts that suffixes make, None for those that no text gives."""


class Slots:
    """The places behind A requests.

    Args:
        target: the model.
        prompts: (A,) what stands in front of the suffix.
        systems: (A,) the requests' own system messages, "" for the target's; none: all have the target's.

    Attributes:
        systems: (A,) as given.
        before: (A,) the ids of the chat up to the end of the request.
        between: (A,) those that the template puts between the request and the answer.
    """

    def __init__(self, target: CausalLMTarget, prompts: Sequence[str], systems: Sequence[str] | None = None) -> None:
        self.target, self.prompts = target, [target.chat.shown(prompt) for prompt in prompts]
        self.systems = list(systems or [""] * len(prompts))
        self._chats = [target.chat.told(system) for system in self.systems]
        laid = [chat.encode(prompt) for chat, prompt in zip(self._chats, prompts, strict=True)]
        self.before = [tokens.ids[: tokens.prompt.stop] for tokens in laid]
        self.between = [tokens.ids[tokens.prompt.stop :] for tokens in laid]

    def texts(self, places: Tensor, suffixes: Tensor) -> Texts:
        """The prompts with each of (B, C, S) suffixes behind those at the (B,) ``places``."""
        count = suffixes.shape[1]
        owners = [place for place in places.tolist() for _ in range(count)]
        ids = suffixes.flatten(0, 1).tolist()
        # How a token is written may depend on the one before it (a blank between words, say), so that one is written too.
        alone = self._written([self.before[owner][-1:] for owner in owners])
        both = self._written([self.before[owner][-1:] + suffix for owner, suffix in zip(owners, ids, strict=True)])
        prompts = [self.prompts[owner] + both[row][len(alone[row]) :] for row, owner in enumerate(owners)]
        laid_out = self.target.chat.laid_out(prompts, [self._chats[owner] for owner in owners])
        found = [
            prompt if laid == self.before[owner] + suffix + self.between[owner] else None
            for prompt, laid, owner, suffix in zip(prompts, laid_out, owners, ids, strict=True)
        ]
        return [found[first : first + count] for first in range(0, len(found), count)]

    def _written(self, ids: list[list[int]]) -> list[str]:
        written: list[str] = self.target.tokenizer.batch_decode(ids, clean_up_tokenization_spaces=False)
        return written


def are_texts(texts: Texts) -> Tensor:
    """(B, C) bool: whether the suffix makes a prompt."""
    return torch.tensor([[text is not None for text in row] for row in texts], dtype=torch.bool)
