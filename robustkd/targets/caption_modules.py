"""The network of a caption model. Importing it imports torch, so whoever builds one imports it then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from robustkd.lazy import F, nn, torch
from robustkd.targets.tower_modules import WithImageTower, words_of

if TYPE_CHECKING:
    from torch import Tensor

_PADDING, _BEGIN, _END, _FIRST = 0, 1, 2, 3


class GatedCell(nn.Module):
    """One step of a gated recurrent unit. Torch's own has kernels that not every device has.

    Source: Cho et al.: Learning phrase representations using RNN encoder-decoder (EMNLP 2014), with the reset gate behind the matrix.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_input, self.of_state = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)

    def forward(self, inputs: Tensor, state: Tensor) -> Tensor:
        """(B, W) and (B, W) -> (B, W), the next state."""
        reset, update, new = self.of_input(inputs).chunk(3, 1)
        own_reset, own_update, own_new = self.of_state(state).chunk(3, 1)
        kept = torch.sigmoid(update + own_update)
        following: Tensor = (1 - kept) * torch.tanh(new + torch.sigmoid(reset + own_reset) * own_new) + kept * state
        return following


class Captioner(WithImageTower):
    """A recurrent decoder of an image's features, and the likelihood of given captions as logits.

    Args:
        image: (B, C, H, W) -> (B, D) features, the hidden layer between both halves.
        words: the vocabulary.
        captions: of each of the K classes all captions that say it; a class's logit is the logarithm of their summed likelihood.
        dimensions: D.
        width: of the decoder.
    """

    tokens: Tensor

    def __init__(
        self, image: nn.Module, words: Sequence[str], captions: Sequence[Sequence[str]], dimensions: int, width: int
    ) -> None:
        super().__init__()
        self.words = tuple(words)
        self._place = {word: number for number, word in enumerate(words, _FIRST)}
        self.length = 1 + max(len(words_of(text)) for texts in captions for text in texts)
        self.start, self.embedding = nn.Linear(dimensions, width), nn.Embedding(len(words) + _FIRST, width)
        self.cell, self.head = GatedCell(width), nn.Linear(width, len(words) + _FIRST)
        nn.init.normal_(self.embedding.weight, std=0.1)  # the words must not drown the image
        self.image = image
        self.register_buffer("tokens", torch.stack([self.encode(texts) for texts in captions]), persistent=False)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """(N, T) int64 of captions: their words, the end, padding; on the device of the weights."""
        rows = [[*(self._place[word] for word in words_of(text)), _END] for text in texts]
        padded = [row + [_PADDING] * (self.length - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.int64, device=self.start.weight.device)

    def decode(self, tokens: Tensor) -> list[str]:
        """The captions of (N, T) tokens, up to their end."""
        told = []
        for row in tokens.tolist():
            row = row[: row.index(_END)] if _END in row else row
            told.append(" ".join(self.words[token - _FIRST] for token in row if token >= _FIRST))
        return told

    def steps(self, features: Tensor, tokens: Tensor) -> Tensor:
        """(B, D) features and the (B, T) tokens of a caption each -> (B, T, V) logits of each token, given those before it."""
        state, seen = self._begun(features), torch.full_like(tokens[:, 0], _BEGIN)
        logits = []
        for at in range(tokens.shape[1]):
            state = self.cell(self.embedding(seen), state)
            logits.append(self.head(state))
            seen = tokens[:, at]
        return torch.stack(logits, 1)

    def _begun(self, features: Tensor) -> Tensor:
        """(B, W) the decoder's first state, of features in one scale: large ones would saturate it, small ones vanish."""
        return torch.tanh(self.start(F.layer_norm(features, features.shape[1:])))

    def log_likelihood(self, features: Tensor, tokens: Tensor) -> Tensor:
        """(B,) of one caption each."""
        each = self.steps(features, tokens).log_softmax(2).gather(2, tokens.unsqueeze(2)).squeeze(2)
        return (each * (tokens != _PADDING)).sum(1)

    def greedy(self, images: Tensor) -> Tensor:
        """(B, T) the likeliest token at each place, after the end padding; deterministic."""
        features = self.image(images).flatten(1)
        state = self._begun(features)
        seen = torch.full((len(features),), _BEGIN, dtype=torch.int64, device=features.device)
        ended, told = torch.zeros_like(seen, dtype=torch.bool), []
        for _ in range(self.length):
            state = self.cell(self.embedding(seen), state)
            seen = self.head(state).argmax(1).masked_fill(ended, _PADDING)
            ended = ended | (seen == _END)
            told.append(seen)
        return torch.stack(told, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K) log-likelihoods of the classes' captions."""
        features = self.image(images).flatten(1)
        classes, each, length = self.tokens.shape
        tokens = self.tokens.reshape(-1, length).repeat(len(features), 1)
        spread = features.repeat_interleave(classes * each, 0)
        return self.log_likelihood(spread, tokens).view(len(features), classes, each).logsumexp(2)
