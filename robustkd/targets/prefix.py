"""What a model keeps of a text, for passes that go on from there: used where these give what whole passes give.

What a layer keeps differs: all keys and values, those of a window, the state of a recurrence. Transformers' own cache knows. Whether
an architecture goes on from it rightly, with many tokens at once, or with one and padding in front, is not presumed but tried once.
"""

from __future__ import annotations

import copy
import inspect
import logging
from typing import TYPE_CHECKING, Any

from robustkd.contracts import TargetError
from robustkd.contracts.errors import out_of_memory
from robustkd.lazy import nn, torch
from robustkd.targets.frozen import recording_gradients, without_gradients

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from robustkd.targets.chat import TokenBatch

_LOG = logging.getLogger(__name__)
_AHEAD = 32
"""Tokens behind a beginning that a trial looks at, at least."""


class Prefix:
    """What a model keeps of a beginning that conversations share (R = 1), or of R of them.

    Args:
        ids: (R, P).
        cache: transformers' cache of some beginnings; it is not changed.
        rows: (R,) which of these.
        name: what a pass of the model calls its cache.
        differentiable: whether gradients can be taken behind it.
    """

    def __init__(self, ids: Tensor, cache: Any, rows: Tensor, name: str, *, differentiable: bool = True) -> None:
        self.ids, self._cache, self._rows, self._name, self.differentiable = ids, cache, rows, name, differentiable

    def within(self, batch: TokenBatch) -> int:
        """P, when all of ``batch`` begins so and is asked for nothing before P + 1."""
        count = self.ids.shape[1]
        if batch.ids.shape[1] <= count or not bool((batch.ids[:, :count] == self.ids).all()):
            raise TargetError("the conversations do not begin with the given prefix", fix="make it of what they share")
        if bool(batch.completion[:, : count + 1].any()):
            raise TargetError("the given prefix reaches into an answer", fix="end it a token before the answers begin")
        return count

    def select(self, rows: Tensor) -> Prefix:
        """Those of some conversations, in this order, any of them as often as wanted."""
        return Prefix(self.ids[rows], self._cache, self._rows[rows], self._name, differentiable=self.differentiable)

    def option(self, rows: int) -> dict[str, Any]:
        """The cache, as an option of a pass of ``rows`` conversations, which may change it: what they share is there for each."""
        chosen = self._rows.expand(rows)
        taken = copy.copy(self._cache)
        taken.layers = [copy.copy(layer) for layer in self._cache.layers]
        for layer in taken.layers:
            vars(layer).update({name: _of_rows(value, chosen) for name, value in vars(layer).items()})
        return {self._name: taken}


class PassCache:
    """The cache that a model's passes take and give, and what it has been found to be good for.

    Args:
        module: a causal language model of transformers.
        context: the most tokens that it takes.

    Attributes:
        name: what its passes call the cache, which differs between releases of transformers; "" where they have none.
    """

    def __init__(self, module: PreTrainedModel, context: int) -> None:
        self._module, self._context = module, context
        accepted = inspect.signature(type(module).forward).parameters
        self.name = next((name for name in ("cache", "past_key_values", "cache_params") if name in accepted), "")
        self._tried = 0
        self._holds = self._differentiable = True
        self._steps: bool | None = None

    def prefix(self, ids: Tensor) -> Prefix | None:
        """Of (R, P) ids; None where passes behind the cache are not the whole ones.

        That is tried with the first beginning, and again with one that is longer than those before: a window may end there.
        """
        if self._holds and ids.shape[1] > self._tried:
            reason = self._disproof(ids[:1])
            self._tried, self._holds = ids.shape[1], reason is None
            self._tell(reason, "each pass of a search reads its whole prompt")
        return self._made(ids) if self._holds else None

    @without_gradients()
    def steps(self, embedded: Tensor) -> bool:
        """Whether an answer may be written from the cache, a token at a time; tried once, with a (P, D) embedded text."""
        if self._steps is None:
            padded = nn.functional.pad(embedded, (0, 0, 1, 0))[None]
            mask = (torch.arange(padded.shape[1] + 1, device=padded.device) > 0).long()[None]
            places = (mask.cumsum(1) - 1).clamp_min(0)
            whole = self._module(
                inputs_embeds=torch.cat([embedded, embedded[:1]])[None], use_cache=False, logits_to_keep=1
            ).logits
            try:
                begun = self._module(
                    inputs_embeds=padded, attention_mask=mask[:, :-1], position_ids=places[:, :-1], use_cache=True
                )
                reason = _difference(
                    whole,
                    self._module(
                        inputs_embeds=embedded[None, :1],
                        attention_mask=mask,
                        position_ids=places[:, -1:],
                        use_cache=True,
                        **{self.name: getattr(begun, self.name)},
                    ).logits,
                )
            except Exception as error:  # whatever an architecture says of a cache that it cannot go on from
                if out_of_memory(error):
                    raise
                reason = _failure(error)
            self._steps = reason is None
            self._tell(reason, "each token of an answer is written by a pass over all before it")
        return self._steps

    def _made(self, ids: Tensor) -> Prefix:
        with torch.no_grad():
            cache = getattr(self._module(input_ids=ids, use_cache=True, logits_to_keep=1), self.name)
        rows = torch.arange(len(ids), device=ids.device)
        return Prefix(ids, cache, rows, self.name, differentiable=self._differentiable)

    @recording_gradients()
    def _disproof(self, ids: Tensor) -> str | None:
        """Why the cache is not to be used behind (1, P) ids; None where it holds for as many tokens again."""
        length = ids.shape[1]
        more = ids.repeat(1, 1 + _AHEAD // length)[:, : min(max(length, _AHEAD), max(1, self._context - length))]
        whole = torch.cat([ids, more], 1)
        with torch.no_grad():
            plain = self._module(input_ids=whole, use_cache=False).logits[:, length:]
        try:
            option = self._made(ids).option(1)
            embedded = self._module.get_input_embeddings()(more).detach().requires_grad_()
            behind = self._module(
                inputs_embeds=embedded, attention_mask=torch.ones_like(whole), use_cache=True, **option
            ).logits
        except Exception as error:
            if out_of_memory(error):
                raise
            return _failure(error)
        try:
            torch.autograd.grad(behind.float().logsumexp(-1).sum(), embedded)
        except RuntimeError:  # a recurrence that writes over its own state
            self._differentiable = False
        return _difference(plain, behind.detach())

    def _tell(self, reason: str | None, therefore: str) -> None:
        if reason is not None:
            _LOG.warning("%s: %s; so %s, which is slower", type(self._module).__name__, reason, therefore)


def _difference(plain: Tensor, behind: Tensor) -> str | None:
    """That two passes' next tokens differ by more than the rounding of their precision, whose unit is u.

    That rounding makes the mean total variation distance some u large, a key or a state that is missing much larger; sqrt(u) is
    between the two. NaN is no fault of the cache: the passes themselves refuse it.
    """
    unit = torch.finfo(behind.dtype).eps
    distance = float((plain.float().softmax(-1) - behind.float().softmax(-1)).abs().sum(-1).mean() / 2)
    return f"behind its cache it says something else (distance {distance:.2g})" if distance > unit**0.5 else None


def _failure(error: Exception) -> str:
    return f"it cannot go on from its cache ({type(error).__name__}: {' '.join(str(error).split())[:100]})"


def _of_rows(value: Any, rows: Tensor) -> Any:
    """What a layer keeps, of some rows: its tensors with a row for each beginning; anything else as it is."""
    if isinstance(value, dict):
        return {key: _of_rows(held, rows) for key, held in value.items()}
    return value[rows] if isinstance(value, torch.Tensor) and value.ndim > 1 else value
