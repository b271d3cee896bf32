"""Random words behind a request: what a suffix attack's prompts look like before it has begun to search.

A model that has only seen clean requests falls to them by accident. One that was trained with them is open to attacks alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustkd.attacks.text.engine.vocabulary import Vocabulary
from robustkd.lazy import torch
from robustkd.targets.causal_lm import CausalLMTarget

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Junk:
    """Random words behind some of the requests.

    Attributes:
        words: (W,) ids to draw from.
        share: of the requests.
        count: words behind each of them.
    """

    words: Tensor
    share: float
    count: int

    @classmethod
    def of(cls, target: CausalLMTarget, share: float, count: int) -> Junk:
        """Junk made of words of the target's own vocabulary."""
        return cls(Vocabulary.of(target).words.cpu(), share, count)

    def draw(self, requests: int, generator: torch.Generator) -> list[list[int]]:
        """Ids for each of so many requests, none for those that stay as they are."""
        chosen = torch.rand(requests, generator=generator) < self.share
        places = torch.randint(len(self.words), (requests, self.count), generator=generator)
        return [ids if has else [] for ids, has in zip(self.words[places].tolist(), chosen.tolist(), strict=True)]
