"""Perplexity filter: a prompt that a language model finds unlikely is held back.

    alarm(x) = max over windows W of x  1/|W| sum_{i in W} -log p(x_i | x_<i)  -  threshold

Suffixes of gradient searches are gibberish, and no text that a person writes is as unlikely. Prompts that read like text pass: templates,
those of another model (``pair``), of a search among likely words (``beast``). Where the threshold is learned, it is the largest value of
the training requests, so that these pass.

Control: ``threshold: 1000``, which nothing reaches.

Source: Jain et al.: Baseline defenses for adversarial attacks against aligned language models (2023), arXiv:2309.00614, section 4.1
(windows of 10 tokens; theirs do not overlap). Alon & Kamfonas: Detecting language model attacks with perplexity (2023), arXiv:2308.14132.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import DataError, FitContext, GenerativeTarget, Params, Prompts, TargetError
from robustkd.defenses.text.guards.guard import Guard, ReadingGuardParams
from robustkd.lazy import torch
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import Tokens, TooLong
from robustkd.targets.guarded import GuardedTarget, unguarded
from robustkd.targets.memory import in_memory

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 64
_ROUNDING = 1e-4
"""Padding shows in the last digits; what lies on the threshold passes."""


class PerplexitySettings(Params):
    """The threshold, and how many tokens it is about."""

    threshold: float = Field(description="log-perplexity (nats a token) above which a prompt is held back")
    window: int | None = Field(None, ge=1, description="the worst of so many neighbouring tokens counts; null: all of them")


class PerplexityFilterTarget(GuardedTarget[PerplexitySettings]):
    """A model behind a perplexity filter. The prompt is read inside the chat template of the model that reads it."""

    kind = "perplexity-filter"
    Settings = PerplexitySettings

    def alarm(self, texts: Sequence[str]) -> Tensor:
        """See ``GuardedTarget.alarm``: log-perplexity above the threshold."""
        reader = reading(self.model if self.reader is None else self.reader)
        return log_perplexity(reader, texts, self.settings.window) - self.settings.threshold - _ROUNDING


class PerplexityFilterParams(ReadingGuardParams):
    """The model, the one that reads, and what is let pass."""

    threshold: float | None = Field(
        None,
        ge=0,
        description="log-perplexity (nats a token) above which a prompt is held back; null: the largest of the training requests",
    )
    window: int | None = Field(None, ge=1, description="the worst of so many neighbouring tokens counts; null: all of them")


class PerplexityFilter(Guard):
    """Holds back prompts whose perplexity is high."""

    Params = PerplexityFilterParams
    target = PerplexityFilterTarget
    source = "Jain et al. 2023, arXiv:2309.00614"

    @property
    def uses_data(self) -> bool:  # type: ignore[override]
        """Where the threshold is learned."""
        return self.params.threshold is None

    def settings(
        self, context: FitContext[Prompts], model: GenerativeTarget, reader: GenerativeTarget | None
    ) -> PerplexitySettings:
        """The parameters, with the threshold that the training requests have.

        Raises:
            TargetError: the reader tells no log-probabilities.
            DataError: it can read no training request.
        """
        p, reads = self.params, reading(model if reader is None else reader)
        if p.threshold is not None:
            return PerplexitySettings(threshold=p.threshold, window=p.window)
        known = log_perplexity(reads, context.train["prompt"], p.window)
        if not (known := known[known.isfinite()]).numel():
            raise DataError("no training request fits into the reader's context", fix="give 'threshold', or another reader")
        return PerplexitySettings(threshold=float(known.max()), window=p.window)


def reading(model: GenerativeTarget) -> CausalLMTarget:
    """The model itself, which has to tell log-probabilities.

    Raises:
        TargetError: it does not.
    """
    reader = unguarded(model)
    if not isinstance(reader, CausalLMTarget):
        raise TargetError(
            f"a {reader.kind} does not tell how likely a text is", fix="name a local model as 'reader', such as a causal-lm"
        )
    return reader


def log_perplexity(reader: CausalLMTarget, texts: Sequence[str], window: int | None = None) -> Tensor:
    """(N,) float32 on the CPU: the mean -log p of each text's tokens, or of its worst ``window`` of them; NaN of one longer than the
    context, 0 of one without tokens.
    """
    found, laid = torch.full((len(texts),), torch.nan), dict[int, Tokens]()
    for place, text in enumerate(texts):
        try:
            laid[place] = reader.encode(text).reading()
        except TooLong:
            continue

    def lost(rows: Tensor) -> None:
        batch = reader.batch([laid[place] for place in rows.tolist()])
        with torch.no_grad():
            losses = -reader.token_logprobs(batch).float().cpu()
        for place, row in zip(rows.tolist(), losses, strict=True):
            own = row[laid[place].completion]
            width = min(window or len(own), len(own))
            found[place] = own.unfold(0, width, 1).mean(1).max() if width else 0.0

    order = sorted((place for place in laid), key=lambda place: len(laid[place].ids))
    in_memory(lost, torch.tensor(order, dtype=torch.int64), _ROWS)
    return found
