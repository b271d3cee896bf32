"""SimBA: one coordinate of a basis after the other, in random order, each kept where the score falls.

    for q in the basis, in random order:
        try x + step q, then x - step q;  keep the first at which J is larger

The basis is that of the pixels, or the low frequencies of the discrete cosine transform.

Good as the simplest attack by scores, and in l2: the perturbation grows as sqrt(steps). It looks at one coordinate at a time, so
large images cost many queries; ``square`` takes fewer in linf.

Source: Guo, Gardner, You, Wilson, Weinberger: Simple black-box adversarial attacks (ICML 2019), algorithm 1 and section 3.2.
Ours: points are projected into the ball, a coordinate that changes nothing there costs its query all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from robustkd.attacks.image.engine.ascent import AttackState, no_gradient
from robustkd.attacks.image.engine.from_inputs import maximize_from_inputs
from robustkd.attacks.image.engine.low_frequency import frequencies, from_frequencies
from robustkd.attacks.image.engine.objective import for_batch
from robustkd.contracts import Attack, AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CoordinateStep:
    """The next coordinate, up; or, where that was no improvement, the same one down."""

    rng: SampleRng
    step_size: float
    share: float
    """of each side's frequencies; of pixels 0"""

    def step(self, state: AttackState, t: int) -> Tensor:
        """(A, *shape) the next proposals."""
        shape, m = state.x.shape[1:], state.memory
        basis = frequencies(shape, self.share) if self.share else tuple(shape)
        size = torch.Size(basis).numel()
        if t == 0:
            m["order"] = torch.zeros((len(state.rows), size), dtype=torch.int64, device=state.x.device)
            m["number"], m["sign"] = torch.full_like(state.rows, -1), -torch.ones_like(state.value)
        going_down = (m["sign"] > 0) & ~state.improved & (m["number"] >= 0)
        m["sign"] = torch.where(going_down, -1.0, 1.0).to(state.value)
        m["number"] = m["number"] + (~going_down).long()
        for turn in (m["number"] // size).unique().tolist():  # one who has had them all begins again in another order
            fresh = (m["number"] == turn * size) & ~going_down
            if bool(fresh.any()):
                draws = self.rng.fork(turn).select(state.rows[fresh])
                m["order"][fresh] = draws.bits((size,)).argsort(1)
        at = m["order"].gather(1, (m["number"] % size).unsqueeze(1))
        q = torch.zeros_like(state.x.flatten(1)[:, :1].expand(-1, size)).scatter(1, at, 1.0).view(-1, *basis)
        if self.share:
            q = from_frequencies(q, shape)
        return state.best_x + per_sample(self.step_size * m["sign"], q) * q


class SimBAParams(Params):
    queries: int = Field(5000, ge=1, description="forward passes for each sample")
    basis: Literal["dct", "pixel"] = Field(
        "dct", description="what a step changes: a frequency of a channel, or a pixel of a channel"
    )
    frequencies: float = Field(0.5, gt=0, le=1, description="of `dct`: the share of each side's frequencies, the lowest")
    step_size: float = Field(0.2, gt=0, description="length of a step in l2, in pixel units; the paper's value")


class SimBA(Attack):
    """Simple black-box attack: needs no gradient. It maximizes the cross entropy, which is to lower the label's probability."""

    Params = SimBAParams
    norms = ("l2", "linf")
    goals = ("untargeted", "targeted")
    gradients = False
    source = "Guo et al. 2019, arXiv:1905.07121"
    loss_family = "cross-entropy"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``queries`` forward passes a sample."""
        p, objective = self.params, for_batch("ce", batch)
        update = CoordinateStep(rng, p.step_size, p.frequencies if p.basis == "dct" else 0.0)
        return maximize_from_inputs(target, batch, threat, objective, update, p.queries - 1, no_gradient)
