"""Random search: some neighbouring tokens of a suffix are replaced at random, and what lowers the loss is kept.

    s' = s, with n random tokens from a random place on;   s <- s' if loss(s') < loss(s)

It takes no gradient, so neither masking nor a flat loss to first order hides anything from it: where it does better than ``gcg``,
the gradient misleads. The authors put a long text around the request that prescribes how to answer (``template``), and that is
where most of their success comes from.

Source: Andriushchenko, Croce, Flammarion: Jailbreaking leading safety-aligned LLMs with simple adaptive attacks (ICLR 2025),
arXiv:2404.02151, section 3. Theirs takes one candidate a step, looks at the first token of the answer alone and shrinks n as its
probability grows; here n falls to one over the steps, and the whole beginning of the answer is aimed at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.text.engine.descent import Descent, DescentAttack, SuffixParams
from robustkd.attacks.text.engine.suffix import Suffixes
from robustkd.attacks.text.engine.vocabulary import Vocabulary
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.targets.causal_lm import CausalLMTarget

if TYPE_CHECKING:
    from torch import Tensor


class RandomSearchParams(SuffixParams):
    """The settings of the search for a suffix by random mutations."""

    tokens: int = Field(25, ge=1, description="length of the suffix, in the target's tokens")
    steps: int = Field(1000, ge=1, description="changes that are tried, one after the other")
    width: int = Field(8, ge=1, description="candidates in each step: forward passes, less those that are no text")
    changed: int = Field(4, ge=1, description="tokens replaced at once in the first steps; it falls to one")


class RandomSearch(DescentAttack):
    """Replaces tokens at random, and keeps what is better."""

    Params = RandomSearchParams
    source = "Andriushchenko et al. 2024, arXiv:2404.02151"
    version = "2"  # 1 took the caches of sliding windows for whole

    @override
    def descent(self, target: CausalLMTarget, vocabulary: Vocabulary) -> Descent:
        """At most ``1 + steps * width`` forward passes for each request."""
        p = self.params
        return Descent(p, vocabulary, p.steps, Changes(vocabulary.allowed.nonzero().squeeze(1), p.width, p.changed, p.steps))


@dataclass(frozen=True)
class Changes:
    """Candidates with random tokens in a window of the suffix.

    Attributes:
        tokens: (V',) what may come in.
        width: how many candidates.
        first: the window's length at the beginning.
        steps: over which it falls to one.
    """

    tokens: Tensor
    width: int
    first: int
    steps: int

    def __call__(self, suffixes: Suffixes, places: Tensor, now: Tensor, t: int, rng: SampleRng) -> Tensor:
        """(B, C, S) mutations of the suffixes ``now``."""
        length = now.shape[1]
        count = min(length, max(1, round(self.first * (1 - t / self.steps))))
        start = rng.integers((self.width, 1), length - count + 1)
        place = torch.arange(length, device=now.device)
        inside = (place >= start) & (place < start + count)
        drawn = self.tokens[rng.integers((self.width, length), len(self.tokens))]
        return torch.where(inside, drawn, now.unsqueeze(1))
