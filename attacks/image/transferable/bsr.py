"""BSR: the mean gradient over copies that are cut into blocks, which are shuffled and rotated.

    T(x): x cut into n x n blocks at random places; the rows of blocks, and the blocks of each row, change places; each block turns
    grad_t = 1/N * sum_i grad_x J(T_i(x_t))

Where a network looks depends on the network; a change that holds wherever the parts are holds on more of them.

Good for transfer between networks on larger images; a step costs N gradients. On small images little is left of a block's content.

Source: Wang et al.: Boosting adversarial transferability by block shuffle and rotation (CVPR 2024), section 3.3. As in the code of the
authors' group (TransferAttack), the angles are uniform in [-24, 24] degrees, and what a rotation takes from outside is 0. Different there:
whole strips are rotated, before each is cut into blocks; columns are cut first as often as rows; all images of a batch are cut and
rotated alike; no strip is drawn more than twice as wide as another; and it has 3 x 3 blocks. Each block's own angle, of each sample, is
the paper's text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.image.engine.ascent import AttackState, GradientEstimator
from robustkd.attacks.image.engine.oracle import Objective, Oracle, gradient_of
from robustkd.attacks.image.transferable.momentum import MIFGSM, MomentumParams
from robustkd.contracts import ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import F, torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Strips:
    """Strips of a length that change places.

    Attributes:
        source: (.., length) int64, the place that each place's content comes from.
        first, last: (.., length) int64, the first and the last place of the strip that it comes from.
        strip: (.., length) int64, the number of that strip.
    """

    source: Tensor
    first: Tensor
    last: Tensor
    strip: Tensor

    @classmethod
    def drawn(cls, shares: Tensor, order: Tensor, length: int) -> Strips:
        """Strips whose widths are as ``shares``, (.., n) above 0, put in the order of ``order``, (.., n)."""
        ends = (shares.cumsum(-1) / shares.sum(-1, keepdim=True) * length).round().long()
        ends[..., -1] = length
        begins = F.pad(ends[..., :-1], (1, 0))
        order = order.argsort(dim=-1, stable=True)
        widths = (ends - begins).gather(-1, order)
        at = torch.arange(length, device=ends.device)
        after = widths.cumsum(-1)
        slot = (at.unsqueeze(-1) >= after.unsqueeze(-2)).sum(-1)
        strip = order.gather(-1, slot)
        first, offset = begins.gather(-1, strip), at - (after - widths).gather(-1, slot)
        return cls(first + offset, first, ends.gather(-1, strip) - 1, strip)


def blocks_moved(x: Tensor, draws: SampleRng, blocks: int, angle: float) -> Tensor:
    """(A, C, H, W) with ``blocks`` x ``blocks`` blocks of each image shuffled, and rotated by up to ``angle`` degrees; differentiable."""
    height, width = x.shape[-2:]

    def drawn(shape: tuple[int, ...], length: int) -> Strips:
        return Strips.drawn(draws.uniform(shape, 1e-3, 1.0), draws.uniform(shape), length)

    rows, columns = drawn((blocks,), height), drawn((blocks, blocks), width)
    turn = math.radians(angle) * draws.uniform((blocks, blocks), -1.0, 1.0, dtype=x.dtype)
    each = torch.arange(len(x), device=x.device).view(-1, 1)
    # (A, H, W) of each place of the result: where the block that it shows lies in x, and the place there.
    top, bottom, y = (part.unsqueeze(-1).to(x.dtype) for part in (rows.first, rows.last, rows.source))
    left, right, at = (part[each, rows.strip].to(x.dtype) for part in (columns.first, columns.last, columns.source))
    turn = turn[each.unsqueeze(-1), rows.strip.unsqueeze(-1), columns.strip[each, rows.strip]]
    down, across = y - (top + bottom) / 2, at - (left + right) / 2
    turned_y = (top + bottom) / 2 + torch.cos(turn) * down - torch.sin(turn) * across
    turned_x = (left + right) / 2 + torch.sin(turn) * down + torch.cos(turn) * across
    inside = (turned_y > top - 0.5) & (turned_y < bottom + 0.5) & (turned_x > left - 0.5) & (turned_x < right + 0.5)
    grid = torch.stack([(2 * turned_x + 1) / width - 1, (2 * turned_y + 1) / height - 1], -1)
    return F.grid_sample(x, grid, align_corners=False) * inside.unsqueeze(1)


@dataclass(frozen=True)
class BlockMeanGradient:
    """The mean gradient over ``copies`` whose blocks have moved, each sample's in its own way."""

    rng: SampleRng
    copies: int
    blocks: int
    angle: float

    def __call__(self, oracle: Oracle, state: AttackState, objective: Objective, t: int) -> Tensor:
        """(A, *shape): ``copies`` forward and backward passes."""
        draws = self.rng.fork(t).select(state.rows)
        total = torch.zeros_like(state.x)
        for _ in range(self.copies):
            with torch.enable_grad():
                x = state.x.detach().requires_grad_()
                moved = blocks_moved(x, draws, self.blocks, self.angle)
            gradient = oracle.value_and_grad(moved, state.rows, objective)[2]
            total += gradient_of(moved, x, gradient)
        return total / self.copies


class BSRParams(MomentumParams):
    """How many copies, blocks and degrees."""

    copies: int = Field(20, ge=1, description="copies at each step (N of the paper)")
    blocks: int = Field(2, ge=1, description="rows and columns of blocks (n of the paper)")
    angle: float = Field(24.0, ge=0, le=180, description="largest rotation of a block in degrees (tau of the paper)")


class BSR(MIFGSM):
    """Block shuffle and rotation, with momentum, on (C, H, W) images."""

    Params = BSRParams
    inputs = "images"
    version = "1"
    source = "Wang et al. 2024, arXiv:2308.10299"

    @override
    def estimator(self, threat: ThreatModel, rng: SampleRng) -> GradientEstimator:
        p = self.params
        return BlockMeanGradient(rng, p.copies, p.blocks, p.angle)
