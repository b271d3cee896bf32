"""Sparse-RS: random search over which pixels are changed, and to which corner of the colours.

    M_0 = eps random pixels, each at a random corner of the colour cube
    propose: some pixels of M go back to the clean image, as many others come in at random corners
    keep the proposal if the loss is larger

and fewer pixels are exchanged as queries are spent.

Good against masked gradients, since it uses none, and stronger than most gradient attacks in l0: the choice of pixels is
combinatorial, and a gradient says little about a step across the whole pixel range. It costs thousands of queries a sample.

Source: Croce, Andriushchenko, Singh, Flammarion, Hein: Sparse-RS: a versatile framework for query-efficient sparse black-box
adversarial attacks (AAAI 2022), algorithm 1 and section 4. Ours: a pixel of inputs without channels is a value; a pixel that would
come in at its clean colour gets the opposite one, at any number of exchanged pixels (theirs draw again, where there is one).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.image.engine.ascent import AttackState
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.random_search import Proposals, RandomSearchAttack
from robustkd.contracts import Params
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample
from robustkd.scoring.pixels import highest, over_channels

if TYPE_CHECKING:
    from torch import Tensor

# Of 10,000 queries, after how many the first share of exchanged pixels is divided by how much (supplement of the paper, l0).
_DIVIDED_BY = ((0, 2), (50, 4), (200, 5), (500, 6), (1000, 8), (2000, 10), (4000, 12), (6000, 15), (8000, 20))


def share_exchanged(t: int, queries: int, first: float) -> float:
    """The share of the changed pixels that query ``t`` exchanges: ``first``, divided as the budget is spent."""
    spent = t * 10_000 // queries
    return first / max((by for mark, by in _DIVIDED_BY if spent > mark), default=1)


class SparseRSParams(Params):
    """Parameters of ``sparse-rs``; the first share is the paper's for l0."""

    queries: int = Field(5000, ge=1, description="forward passes for each sample in each restart")
    first_share: float = Field(0.3, gt=0, le=1, description="share of the pixels exchanged at first (alpha_init of the paper)")
    restarts: int = Field(1, ge=1, description="attempts with other random numbers, on the survivors only")
    give_up: bool = Field(False, description="give a sample up where its margin would not fall to zero in time, as square does")


class SparseRS(RandomSearchAttack):
    """Sparse random search: needs no gradient. It maximizes the margin; targeted, -CE, as in the paper."""

    Params = SparseRSParams
    norms = ("l0",)
    source = "Croce et al. 2022, arXiv:2006.12834"

    @override
    def proposals(self, ball: Ball, rng: SampleRng) -> Proposals:
        return Exchange(rng, self.params.queries, self.params.first_share)


class Exchange(Proposals):
    """Proposals that exchange changed pixels. ``state.memory`` has ``kept``, the pixels of the best point, and ``proposed``."""

    def start(self, ball: Ball, rows: Tensor) -> Tensor:
        """(A, *shape) the images with ``ball.eps`` random pixels at random corners of the colours."""
        return torch.where(self._first(ball, rows), self._corners(ball, rows, "colours"), ball.centre)

    def step(self, state: AttackState, t: int) -> Tensor:
        """(A, *shape) the next proposals."""
        m, ball = state.memory, state.ball
        if t == 0:
            m["kept"] = m["proposed"] = self._first(ball, state.rows)
        kept = torch.where(per_sample(state.improved, ball.centre), m["proposed"], m["kept"])
        count = (share_exchanged(t + 1, self.queries, self.first) * ball.eps.floor()).floor().clamp_min(1).minimum(ball.eps)
        key = self.rng.fork(t).select(state.rows).uniform(over_channels(ball.centre).shape[1:], dtype=ball.centre.dtype)
        out = highest(torch.where(kept, key, -1), count) & kept
        # Where every pixel is changed already, those that go out come in again.
        coming = highest(torch.where(kept, torch.where(out, key - 1, -2), key), count) & (out | ~kept)
        proposal = torch.where(out, ball.centre, state.best_x)
        m["kept"], m["proposed"] = kept, (kept & ~out) | coming
        return torch.where(coming, self._corners(ball, state.rows, t), proposal)

    def _first(self, ball: Ball, rows: Tensor) -> Tensor:
        key = self.rng.fork("start").select(rows).uniform(over_channels(ball.centre).shape[1:], dtype=ball.centre.dtype)
        return highest(key, ball.eps)

    def _corners(self, ball: Ball, rows: Tensor, name: str | int) -> Tensor:
        """(A, *shape) for each pixel a random corner of the colours that is not its clean colour."""
        low, high = (torch.as_tensor(bound).to(ball.centre) for bound in ball.bounds)
        up = self.rng.fork(f"{name}/colours").select(rows).bits(ball.centre.shape[1:]) & 1 == 1
        clean = over_channels((torch.where(up, high, low) != ball.centre).to(ball.centre.dtype)) == 0
        return torch.where(up ^ clean, high, low)
