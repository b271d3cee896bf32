"""Random words behind a request: what a suffix attack's prompts look like before it has begun to search.

A model that has only seen clean requests falls to them by accident. One that was trained with them is open to attacks alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from robustkd.attacks.text.engine.vocabulary import Vocabulary
from robustkd.contracts import renamed
from robustkd.lazy import torch
from robustkd.targets.causal_lm import CausalLMTarget

if TYPE_CHECKING:
    from torch import Tensor


RandomSuffixRate = Annotated[
    float,
    renamed("random_suffix_rate", "junk"),
    Field(ge=0, le=1, description="share of all requests that get random words behind them"),
]
"""A parameter type, for a parameter of the name ``random_suffix_rate``."""

RandomSuffixTokens = Annotated[
    int, renamed("random_suffix_tokens", "junk_tokens"), Field(ge=1, description="how many random words a request gets")
]
"""A parameter type, for a parameter of the name ``random_suffix_tokens``."""


@dataclass(frozen=True)
class RandomSuffix:
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
    def of(cls, target: CausalLMTarget, share: float, count: int) -> RandomSuffix:
        """Suffixes of words of the target's own vocabulary."""
        return cls(Vocabulary.of(target).words.cpu(), share, count)

    def draw(self, requests: int, generator: torch.Generator) -> list[list[int]]:
        """Ids for each of so many requests, none for those that stay as they are."""
        chosen = torch.rand(requests, generator=generator) < self.share
        places = torch.randint(len(self.words), (requests, self.count), generator=generator)
        return [ids if has else [] for ids, has in zip(self.words[places].tolist(), chosen.tolist(), strict=True)]
