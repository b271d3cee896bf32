"""Carlini-Wagner, L2: the smallest perturbation that changes the decision, by penalty and binary search.

    minimise ||d||_2^2 + c * max(z_y - max_{j != y} z_j + kappa, 0)   over d with x + d a valid image,

with Adam, for a c that is searched for by bisection, each sample on its own.

Source: Carlini & Wagner: Towards evaluating the robustness of neural networks (S&P 2017), section V. The paper names three
ways to keep pixels valid; this is its projected gradient descent. Its change of variables (tanh) has no gradient at
black and white, where most pixels of MNIST are, so these would never move.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from robustkd.attacks.image.losses import targeted, untargeted
from robustkd.attacks.oracle import Oracle, frozen
from robustkd.contracts import Attack, AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.attack import LossFamily
from robustkd.contracts.random import SampleRng
from robustkd.scoring.distances import distance, per_sample

_BETA1, _BETA2, _TINY = 0.9, 0.999, 1e-8  # Adam's own
_LARGEST = 1e10  # as in the paper: beyond it, c is not raised further


class CWL2Params(Params):
    """Parameters of ``cw-l2``; the defaults of the paper where it gives them, with its 10,000 steps cut to 200."""

    steps: int = Field(200, ge=1, description="Adam steps for each c")
    binary_steps: int = Field(9, ge=1, description="values of c that are tried")
    initial_const: float = Field(1e-3, gt=0, description="the first c")
    confidence: float = Field(0.0, ge=0, description="kappa: the margin that an adversarial example must have")
    lr: float = Field(0.01, gt=0, description="Adam's learning rate, in pixel units")
    abort_early: bool = Field(True, description="end a sample's search for one c once its objective stalls")


class CWL2(Attack):
    """Carlini-Wagner attack, minimising the L2 norm."""

    Params = CWL2Params
    kind = "minimum-norm"
    norms = ("l2",)
    goals = ("untargeted", "targeted")
    source = "Carlini & Wagner 2017, arXiv:1608.04644"

    @property
    def loss_family(self) -> LossFamily:
        """It climbs the logit margin."""
        return "margin"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """At most ``binary_steps * (steps + 1)`` forward and ``binary_steps * steps`` backward passes a sample."""
        p = self.params
        with frozen(target.module):
            oracle = Oracle(target, batch)
            rows = torch.arange(len(batch), device=batch.inputs.device)
            logits = oracle.logits(batch.inputs, rows) if batch.logits is None else batch.logits
            success = oracle.is_adversarial(logits, rows)
            best, best_norm = batch.inputs.clone(), torch.where(success, 0.0, torch.inf)
            todo = rows[~success]
            const = torch.full((len(batch),), p.initial_const, dtype=batch.inputs.dtype, device=batch.inputs.device)
            low, high = torch.zeros_like(const), torch.full_like(const, torch.inf)
            for _ in range(p.binary_steps if len(todo) else 0):
                x, norm = self._search(oracle, batch, todo, const[todo])
                worked = norm.isfinite()
                better = norm < best_norm[todo]
                best[todo[better]], best_norm[todo[better]] = x[better], norm[better]
                high[todo] = torch.where(worked, const[todo].minimum(high[todo]), high[todo])
                low[todo] = torch.where(worked, low[todo], const[todo].maximum(low[todo]))
                raised = (const[todo] * 10).clamp_max(_LARGEST)
                const[todo] = torch.where(high[todo].isfinite(), (low[todo] + high[todo]) / 2, raised)
        return AttackResult(best, best_norm.isfinite(), oracle.forwards, oracle.backwards)

    def _search(self, oracle: Oracle, batch: Batch, rows: Tensor, const: Tensor) -> tuple[Tensor, Tensor]:
        """The closest adversarial point of each row for its c, and its distance (inf where none was found)."""
        p = self.params
        low, high = getattr(oracle.target, "bounds", (0.0, 1.0))
        loss = (untargeted if batch.goals is None else targeted)("margin")
        classes = batch.labels if batch.goals is None else batch.goals
        every = max(1, p.steps // 10)  # how often the paper's code looks for a stall

        def hinge(logits: Tensor, asked: Tensor) -> Tensor:
            return (p.confidence - loss(logits, classes[asked])).clamp_min(0)

        whole_x = batch.inputs[rows]
        whole_norm = torch.full((len(rows),), torch.inf, dtype=whole_x.dtype, device=whole_x.device)
        places = torch.arange(len(rows), device=rows.device)
        clean, x = whole_x, whole_x
        first, second = torch.zeros_like(x), torch.zeros_like(x)
        previous = torch.full_like(const, torch.inf)
        for t in range(p.steps + 1):
            if t < p.steps:
                logits, lack, gradient = oracle.climb(x, rows, hinge)
            else:
                logits = oracle.logits(x, rows)
                lack = hinge(logits, rows)
            norm = distance(x - clean, "l2")
            # A lack of zero may be a tie of two classes, so the decision itself is asked for as well.
            closer = (lack <= 0) & oracle.is_adversarial(logits, rows) & (norm < whole_norm[places])
            whole_x[places[closer]], whole_norm[places[closer]] = x[closer], norm[closer]
            if t == p.steps:
                break
            if p.abort_early and t % every == 0:
                objective = norm**2 + const * lack
                stay = objective < 0.9999 * previous
                previous = objective
                if not bool(stay.all()):
                    rows, places, const, previous = rows[stay], places[stay], const[stay], previous[stay]
                    clean, x, gradient, first, second = clean[stay], x[stay], gradient[stay], first[stay], second[stay]
                    if not len(rows):
                        break
            gradient = 2 * (x - clean) + per_sample(const, x) * gradient
            first = _BETA1 * first + (1 - _BETA1) * gradient
            second = _BETA2 * second + (1 - _BETA2) * gradient**2
            step = first / (1 - _BETA1 ** (t + 1)) / ((second / (1 - _BETA2 ** (t + 1))).sqrt() + _TINY)
            x = (x - p.lr * step).clamp(low, high)
        return whole_x, whole_norm
