"""Perplexity: a prompt that a language model finds unlikely is rejected. The score is that of the defense ``perplexity-filter``.

    score(x) = max over windows W of x  1/|W| sum_{i in W} -log p(x_i | x_<i)

Here its threshold is set for a rate of false alarms on validation requests, as that of every detector; the defense of its own lets all
training requests pass.

Source: Alon & Kamfonas: Detecting language model attacks with perplexity (2023), arXiv:2308.14132; Jain et al. 2023, arXiv:2309.00614,
section 4.1, for windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import BaseTarget, Detector, GenerativeTarget, Params
from robustkd.defenses.text.guards.perplexity_filter import log_perplexity, reading
from robustkd.lazy import nn
from robustkd.targets.causal_lm import CausalLMTarget

if TYPE_CHECKING:
    from torch import Tensor


class PerplexityParams(Params):
    """How many tokens the score is about."""

    window: int | None = Field(None, ge=1, description="the worst of so many neighbouring tokens counts; null: all of them")


class Unlikely(nn.Module):
    """The score; the model that reads is the watched one, or the filter's reader."""

    def __init__(self, reader: CausalLMTarget, window: int | None) -> None:
        super().__init__()
        self.reader, self.window = reader, window

    def forward(self, texts: Sequence[str]) -> Tensor:
        """N prompts -> (N,) nats a token, NaN of one that is longer than the context."""
        return log_perplexity(self.reader, texts, self.window)


class Perplexity(Detector[GenerativeTarget]):
    """How unlikely a language model finds a prompt."""

    Params: ClassVar[type[Params]] = PerplexityParams
    modalities = ("text",)
    source = "Alon & Kamfonas 2023, arXiv:2308.14132; Jain et al. 2023, arXiv:2309.00614"

    @override
    def build(self, model: GenerativeTarget, others: Mapping[str, BaseTarget]) -> nn.Module:
        return Unlikely(reading(model), self.params.window)
