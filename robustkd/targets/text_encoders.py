"""The text encoders of a text-to-image model, and what its UNet is told of a prompt.

Stable Diffusion 1.x and 2.x have one encoder, whose last states the UNet attends to. SDXL has two with one vocabulary: the UNet attends
to the states before the last layer of both, side by side, and is told a vector for the whole prompt by the second one. The second one's
tokenizer fills with another token, which it also splits off wherever a prompt has it: of "no!", the two encoders read other tokens.

Source: Podell et al.: SDXL: Improving latent diffusion models for high-resolution image synthesis (2023), arXiv:2307.01952, section 2.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from robustkd.contracts import DataError, TargetError
from robustkd.lazy import torch
from robustkd.scoring.finite import require_finite
from robustkd.targets.activations import output_hooks

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What the UNet is told of B prompts.

    Attributes:
        tokens: (B, T, D), what it attends to.
        pooled: (B, P), a vector for each whole prompt; None of a model with one text encoder.
    """

    tokens: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Tensor | slice) -> Conditioning:
        """Some of the prompts."""
        return self._each(lambda part: part[rows])

    def expand(self, count: int) -> Conditioning:
        """``count`` rows: those that there are, or the only one over and over."""
        return self._each(lambda part: part.expand(count, *part.shape[1:]))

    def repeat_interleave(self, times: int) -> Conditioning:
        """Each row ``times`` times, one after the other."""
        return self._each(lambda part: part.repeat_interleave(times, 0))

    def zeros(self) -> Conditioning:
        """Zeros of the same shapes."""
        return self._each(torch.zeros_like)

    def detach(self) -> Conditioning:
        """The same values without gradients."""
        return self._each(torch.detach)

    def then(self, other: Conditioning) -> Conditioning:
        """These rows, then those of ``other``."""
        return joined([self, other])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        return Conditioning(change(self.tokens), None if self.pooled is None else change(self.pooled))


def joined(parts: Sequence[Conditioning]) -> Conditioning:
    """The rows of all parts, one after the other."""
    pooled = [part.pooled for part in parts if part.pooled is not None]
    return Conditioning(torch.cat([part.tokens for part in parts]), torch.cat(pooled) if pooled else None)


@dataclass(frozen=True)
class SecondEncoder:
    """What a model with two text encoders needs to know of the second one.

    Attributes:
        tokenizer: its tokenizer, as the package tokenizers writes it.
        pad: the token by which its positions after the prompt are filled.
        zeros_for_empty: the UNet is told zeros in the place of the empty prompt.
    """

    tokenizer: str
    pad: int
    zeros_for_empty: bool = True


class TextEncoders(Protocol):
    """How a model reads prompts. T are its positions, ``bos`` and ``eos`` included."""

    @property
    def networks(self) -> dict[str, Any]:
        """The networks by their names in a pipeline of diffusers."""

    def embed(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, E), the tokens' embeddings without positions."""

    def read_alike(self, ids: Tensor) -> Tensor:
        """(N,) bool, whether all encoders are given the token itself where a prompt has one of these (N,) tokens."""

    def of_ids(self, ids: Tensor) -> Conditioning:
        """What the UNet is told of (B, T) prompts."""

    def of_embeddings(self, embeddings: Tensor) -> Conditioning:
        """The same of (B, T, E), laid out as ``embed`` gives them; differentiable in them."""


class OneTextEncoder:
    """The encoder of Stable Diffusion 1.x and 2.x, a CLIPTextModel."""

    def __init__(self, network: Any, pad: int) -> None:
        self._network, self._pad = network, pad

    @property
    def networks(self) -> dict[str, Any]:
        """The network as ``text_encoder``."""
        return {"text_encoder": self._network}

    def embed(self, ids: Tensor) -> Tensor:
        """See ``TextEncoders``."""
        embedded: Tensor = self._network.get_input_embeddings()(ids)
        return embedded

    def read_alike(self, ids: Tensor) -> Tensor:
        """See ``TextEncoders``: all of them."""
        return torch.ones_like(ids, dtype=torch.bool)

    def of_ids(self, ids: Tensor) -> Conditioning:
        """See ``TextEncoders``."""
        return Conditioning(_finite(self._network(input_ids=ids).last_hidden_state))

    def of_embeddings(self, embeddings: Tensor) -> Conditioning:
        """See ``TextEncoders``."""
        anything = torch.full(embeddings.shape[:2], self._pad, device=embeddings.device)
        with _looked_up(self._network.get_input_embeddings(), embeddings):
            return self.of_ids(anything)


class TwoTextEncoders:
    """The encoders of SDXL: a CLIPTextModel and a CLIPTextModelWithProjection. E is the sum of their embeddings' sizes.

    Args:
        first: it reads the target's tokens as they are.
        second: the other network.
        about: its tokenizer, and the token by which it fills.
        tokenizer: of the first one.
        decode: the text of some tokens.
        special: the tokens ``bos`` at which a prompt begins, ``eos`` at which it ends and the second encoder's vector is taken, and ``pad``
            of the first encoder.

    Raises:
        TargetError: the two do not read equally many tokens of one vocabulary.
    """

    def __init__(
        self,
        first: Any,
        second: Any,
        about: SecondEncoder,
        tokenizer: Tokenizer,
        decode: Callable[[Sequence[int]], str],
        special: Mapping[str, int],
    ) -> None:
        from tokenizers import Tokenizer as Reader  # late: listing plug-ins must not wait for it

        self._first, self._second, self._about, self._decode = first, second, about, decode
        self._bos, self._eos, self._pad = (special[name] for name in ("bos", "eos", "pad"))
        self._tokenizer = Reader.from_str(about.tokenizer)
        vocabulary = tokenizer.get_vocab()
        own, theirs = (
            {token.content for token in each.get_added_tokens_decoder().values()} for each in (self._tokenizer, tokenizer)
        )
        split = own - theirs
        self._other = torch.tensor(
            sorted(number for token, number in vocabulary.items() if any(text in token for text in split)), dtype=torch.int64
        )
        if self._tokenizer.get_vocab() != vocabulary:
            raise TargetError("the two tokenizers have not the same vocabulary", fix="take both from one model")
        positions, sizes = (
            [getattr(network.config, name) for network in (first, second)] for name in ("max_position_embeddings", "vocab_size")
        )
        if len({*positions}) > 1 or len({*sizes}) > 1:
            raise TargetError(
                f"the two text encoders read {positions} tokens of {sizes}, which are not the same",
                fix="take both from one model",
            )

    @property
    def networks(self) -> dict[str, Any]:
        """The networks as ``text_encoder`` and ``text_encoder_2``."""
        return {"text_encoder": self._first, "text_encoder_2": self._second}

    def embed(self, ids: Tensor) -> Tensor:
        """See ``TextEncoders``: the embeddings of the first encoder, then those of the second, side by side."""
        tables = self._first.get_input_embeddings(), self._second.get_input_embeddings()
        return torch.cat([tables[0](ids), tables[1](self._of_second(ids))], -1)

    def read_alike(self, ids: Tensor) -> Tensor:
        """See ``TextEncoders``: those without a text that the second tokenizer splits off."""
        return ~torch.isin(ids, self._other.to(ids.device))

    def of_ids(self, ids: Tensor) -> Conditioning:
        """See ``TextEncoders``."""
        return self._told(ids, self._of_second(ids))

    def of_embeddings(self, embeddings: Tensor) -> Conditioning:
        """See ``TextEncoders``. A prompt ends at the first position with the embedding of ``eos``.

        Raises:
            TargetError: a prompt has no such position.
        """
        tables = self._first.get_input_embeddings(), self._second.get_input_embeddings()
        width = tables[0].embedding_dim
        ends = (embeddings[..., width:] == tables[1].weight[self._eos]).all(-1)
        if not bool(ends.any(1).all()):
            raise TargetError("the embeddings of a prompt have no end", fix="leave the embedding of its eos as it is")
        # Nothing is looked up by these ids, but the second encoder takes its vector where they say eos.
        last = ends.int().argmax(1, keepdim=True)
        ids = torch.zeros_like(ends, dtype=torch.int64).scatter(1, last, self._eos)
        with _looked_up(tables[0], embeddings[..., :width]), _looked_up(tables[1], embeddings[..., width:]):
            return self._told(ids, ids)

    def _told(self, ids: Tensor, others: Tensor) -> Conditioning:
        first = self._first(input_ids=ids, output_hidden_states=True)
        second = self._second(input_ids=others, output_hidden_states=True)
        tokens = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        return Conditioning(_finite(tokens), _finite(second.text_embeds))

    def _of_second(self, ids: Tensor) -> Tensor:
        """(B, T) the tokens that the second encoder reads of prompts of (B, T) tokens; of what does not begin as a prompt, the same."""
        trailing = (ids != self._pad).flip(-1).cumsum(-1).flip(-1) == 0
        if self._pad == self._eos:  # the first of them is the prompt's end
            trailing &= trailing.cumsum(-1) > 1
        found = ids.masked_fill(trailing, self._about.pad)
        body = ~trailing & (ids[:, :1] == self._bos)
        # Without the beginning and the end.
        body &= body.cumsum(-1) > 1
        body &= body.flip(-1).cumsum(-1).flip(-1) > 1
        for row in (~self.read_alike(ids) & body).any(-1).nonzero().flatten().tolist():
            text = self._decode(ids[row][body[row]].tolist())
            read = self._tokenizer.encode(text, add_special_tokens=False).ids
            room = ids.shape[-1] - 2
            if len(read) > room:
                raise DataError(
                    f"a prompt of {len(read)} tokens is too long, the second text encoder reads {room}: {text[:60]!r}..",
                    fix="shorten it: what is cut off silently would not be what was asked",
                )
            filled = [int(ids[row][0]), *read, self._eos, *[self._about.pad] * (room - len(read))]
            found[row] = torch.tensor(filled, device=ids.device)
        return found


def _finite(states: Tensor) -> Tensor:
    require_finite(states.detach(), "the text encoder's outputs", "prompts")
    return states


@contextmanager
def _looked_up(table: nn.Embedding, embeddings: Tensor) -> Iterator[None]:
    """Every look-up in ``table`` gives ``embeddings``: the encoder takes ids and nothing else."""
    with output_hooks([table], [lambda module, arguments, output: embeddings]):
        yield
