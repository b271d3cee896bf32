"""MEND: demonstrations before a request are distilled into a few vectors, which the model reads in their place.

    v = H(demonstrations),   H a copy of the model with m learnt queries
    min_H  weight * KL( p(. | demonstrations, x, y_<i) || p(. | v, x, y_<i) )  -  weight_ce * log p(y_i | v, x, y_<i)

over the tokens y_i of answers y to requests x. The model that answers is frozen on both sides, so that what is asked of it without turns
is answered as before. Whether the vectors of forbidden demonstrations break a refusal as the demonstrations do (``many-shot``), and
whether a filter of texts would see it, is the question: behind the compressor there is no text.

Controls: ``tokens: 0``, which leaves the demonstrations out; ``steps: 0``, a compressor that learnt nothing; and the model itself, which
reads them. The log has the divergence on held-out requests with the vectors, and without anything.

Source: Li et al.: MEND: meta demonstration distillation for efficient and effective in-context learning (ICLR 2024), arXiv:2403.06914,
read in the authors' code (src/model_distill.py, src/SmallModel.py). From the authors: the compressor as a copy that is given learnt
queries behind the demonstrations and whose last hidden states at them are put before the request, the frozen model, cross entropy and
divergence with equal weights. Their code reads weights of distances between hidden states (d_beta, d_eta, d_tau), which its loss does
not use; nor does this one. From us: one stage in the place of their two (pre-training on split texts, then tasks); a task is a role of
the data; the divergence is taken at the tokens of answers (theirs, at all of the request's too); steps, rate and sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field
from typing_extensions import override

from robustkd.contracts import Capabilities, DataError, FitContext, Prompts, TargetRef
from robustkd.contracts.prompts import Turn
from robustkd.defenses.text.distillation.engine.domains import with_reference
from robustkd.defenses.text.text_defense import TextDefense
from robustkd.defenses.text.training import (
    Demonstrations,
    TextStepParams,
    behind_turns,
    finished,
    own_copy,
    train_text,
)
from robustkd.defenses.training.divergence import kl
from robustkd.defenses.training.networks import seeded_init
from robustkd.lazy import F, torch
from robustkd.targets import frozen
from robustkd.targets.chat import Tokens
from robustkd.targets.compressing import CompressingTarget

if TYPE_CHECKING:
    from torch import Tensor

_HELD_OUT = 64
"""Held-out requests that the divergence is reported of."""


class MENDParams(TextStepParams):
    model: TargetRef = Field(description="the defense whose model answers, and is copied to be the compressor")
    tokens: int = Field(8, ge=0, description="m, vectors in the place of the demonstrations; 0: the control, they are left out")
    shots: int = Field(4, ge=1, description="demonstrations before a request in training, at most")
    without: tuple[str, ...] = Field((), description="roles of the data that the compressor never reads, such as knowledge")
    steps: int = Field(300, ge=0, description="updates of the compressor; 0: the control, it learns nothing")
    batch_size: int = Field(16, ge=1, description="requests in each step")
    lr: float = Field(7e-4, gt=0, description="learning rate of AdamW")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which it rises first")
    weight: float = Field(1.0, ge=0, description="of the divergence")
    weight_ce: float = Field(1.0, ge=0, description="of the cross entropy of the answers themselves")


class MEND(TextDefense):
    """A language model that reads earlier turns as vectors."""

    Params = MENDParams
    source = "Li et al. 2024, arXiv:2403.06914"

    @override
    def target_capabilities(self, others: Mapping[str, Capabilities]) -> Capabilities:
        """It answers, and what its vectors hold is no text."""
        return CompressingTarget.capabilities

    def fit(self, context: FitContext[Prompts]) -> CompressingTarget:
        """Train the compressor.

        Raises:
            DataError: no role of the data has two requests, or a role that is to be left out is not there.
        """
        p, model = self.params, finished(context, self.params.model)
        compressor = own_copy(model)
        compressor.module.float()
        with seeded_init(context, "queries"):
            places = torch.randint(len(model.embedding.weight), (p.tokens,))
        # They begin as words of the vocabulary.
        queries = compressor.embed(places.to(model.device)).detach().float().clone()
        target = CompressingTarget(model, compressor, queries).to(context.device)
        if not (p.tokens and p.steps):
            target.module.eval()
            return target
        rows = _rows(context.train, p.without)
        loss = MENDLoss(Demonstrations.of(rows, rows["reference"], 1, p.shots), p)
        with frozen(model.module):
            target.compressor.module.requires_grad_(True)
            target.module.get_parameter("queries").requires_grad_(True)
            train_text(context, target, loss, p, name="compress", measure=_measure(context, p))
        return target


class MENDLoss:
    """What the compressor minimises.

    Args:
        demonstrations: what is drawn from.
        params: the weights.
    """

    def __init__(self, demonstrations: Demonstrations, params: MENDParams) -> None:
        self._demonstrations, self._params = demonstrations, params

    def __call__(self, target: CompressingTarget, generator: torch.Generator) -> Tensor:
        """The loss of a step."""
        p = self._params
        target.model.module.eval()  # its training mode would be the compressor's
        read = laid(target, self._demonstrations.draw(p.batch_size, generator))
        ours, answers = with_vectors(target, read)
        loss = p.weight_ce * F.cross_entropy(ours, answers)
        return loss + p.weight * kl(with_turns(target, read), ours, reduction="batch")


@dataclass(frozen=True)
class Read:
    """A request and its answer behind demonstrations.

    Attributes:
        whole: as the model reads it with them.
        plain: without them.
        turns: the ids of the demonstrations alone.
        at: the place in ``plain`` where they are left out.
    """

    whole: Tokens
    plain: Tokens
    turns: list[int]
    at: int


def laid(target: CompressingTarget, drawn: list[tuple[Turn, ...]]) -> list[Read]:
    """Each draw as tokens, with as many demonstrations as fit into the context. What fits behind none, or not behind vectors, is left out.

    Raises:
        TooLong: a request does not fit even alone.
        DataError: none is left.
    """
    found = []
    for several in drawn:
        shots, whole = behind_turns(target.model.chat, several)
        if not shots:
            continue
        turns, plain, at = target.split(shots, *several[-1])
        if len(plain.ids) + target.tokens <= target.model.chat.context:
            found.append(Read(whole, plain, turns, at))
    if not found:
        raise DataError(
            "no demonstration fits into the context with a request behind it", fix="take a model with a longer context"
        )
    return found


def with_turns(target: CompressingTarget, read: list[Read]) -> Tensor:
    """(M, V) logits at the answers' tokens of the model that reads the demonstrations, without a graph."""
    with torch.no_grad():
        return target.model.completion_logits(target.model.batch([item.whole for item in read]))


def with_vectors(target: CompressingTarget, read: list[Read]) -> tuple[Tensor, Tensor]:
    """(M, V) logits at the answers' tokens of the model that reads vectors in their place, and (M,) these tokens."""
    model, m = target.model, target.tokens
    batch = model.batch([_widened(item.plain, item.at, m, model.chat.pad) for item in read])
    embedded = model.embed(batch.ids)
    if m:
        starts = torch.tensor([item.at for item in read], device=embedded.device)[:, None]
        columns = torch.arange(batch.ids.shape[1], device=embedded.device)
        inside = (columns >= starts) & (columns < starts + m)
        vectors = target.vectors([item.turns for item in read]).to(embedded)
        embedded = embedded.masked_scatter(inside[..., None], vectors)
    return model.completion_logits(batch, embedded), batch.ids[batch.completion]


def _widened(tokens: Tokens, at: int, more: int, filler: int) -> Tokens:
    """The conversation with room for ``more`` vectors at a place before the request."""
    moved = [slice(span.start + more, span.stop + more) for span in (tokens.prompt, tokens.completion)]
    return Tokens([*tokens.ids[:at], *[filler] * more, *tokens.ids[at:]], *moved)


def _rows(rows: Prompts, without: tuple[str, ...]) -> Prompts:
    roles = rows["role"]
    if unknown := sorted(set(without) - set(roles)):
        raise DataError(f"without: no request has the role '{unknown[0]}'", fix=f"roles are {', '.join(sorted(set(roles)))}")
    return with_reference(rows.select(np.array([role not in without for role in roles], dtype=bool)))


def _measure(context: FitContext[Prompts], params: MENDParams) -> Callable[[CompressingTarget], dict[str, float]]:
    """How far the vectors are from the demonstrations on held-out requests, and how far nothing is."""
    held = context.validation
    if held is None:
        return lambda target: {}
    rows = with_reference(held.select(np.array([role not in params.without for role in held["role"]], dtype=bool)))
    try:
        drawn = Demonstrations.of(rows, rows["reference"], 1, params.shots).draw(_HELD_OUT, torch.Generator().manual_seed(0))
    except DataError:
        return lambda target: {}

    def measure(target: CompressingTarget) -> dict[str, float]:
        read = laid(target, drawn)
        silent = CompressingTarget(target.model, target.compressor, target.module.get_parameter("queries")[:0].detach())
        with torch.no_grad():
            wanted = with_turns(target, read)
            apart = {
                "validation_divergence": with_vectors(target, read)[0],
                "validation_divergence_of_nothing": with_vectors(silent, read)[0],
            }
            return {name: kl(wanted, ours, reduction="batch").item() for name, ours in apart.items()}

    return measure
