"""Polish: the best of many targeted starts, then a mixed-integer program over the ReLUs that are nearest to switching there.

    x*  = the point that comes nearest to class t, of ``starts`` runs of APGD on the margin z_t - max_j z_j
    max   z_t(x) - z_y(x)   over the points of the box that have every ReLU on the side on which x* has it,
                            except the ``free`` ones whose inputs are nearest to 0 at x*
    x*  = the solution, if the network itself agrees that it is higher, and once more

A gradient follows the linear piece that it is on; the program sees 2^free pieces at once. Where no more than ``free`` ReLUs can
switch within the budget, and the time suffices, it is the complete one, and what it finds is the optimum.

Good as a last look at small networks, of a few thousand ReLUs: a program takes seconds a sample. Networks of other than affine
layers and ReLUs are refused, and large ones.

Source: the idea of searching among activation patterns from the best points of an attack is that of Zhang et al.: A branch and bound
framework for stronger adversarial attacks of ReLU networks (BaB-attack, ICML 2022), which branches and bounds on a GPU. One program
around the best point, its form and its solver (HiGHS, by SciPy) are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.attacks.image.engine.ascent import Search, SearchResult
from robustkd.attacks.image.engine.losses import margin
from robustkd.attacks.image.engine.oracle import frozen
from robustkd.attacks.image.engine.target_classes import target_classes
from robustkd.attacks.image.engine.targeted_runs import TargetedRuns, run_targeted
from robustkd.attacks.image.gradient.apgd import AdaptiveStep
from robustkd.contracts import Attack, AttackResult, Batch, Params, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.certification.mixed_integer.relu_network import ReluNetwork


class PolishParams(Params):
    targets: int = Field(3, ge=1, description="wrong classes to aim at, those of the nearest boundaries; at most all of them")
    starts: int = Field(40, ge=1, description="random points that each class is approached from")
    steps: int = Field(100, ge=1, description="steps of APGD from each of them")
    free: int = Field(100, ge=0, description="ReLUs that may switch in one program")
    rounds: int = Field(
        3, ge=0, description="programs for each class: each starts where the one before ended, while that gains"
    )
    seconds: float = Field(10.0, gt=0, description="that the solver may take for one program")


class Polish(Attack):
    """Many targeted starts, then mixed-integer programs around the best of them; in linf, on small ReLU networks."""

    Params = PolishParams
    norms = ("linf",)
    source = "the idea: Zhang et al. 2022 (BaB-attack, ICML 2022); the program is robustkd's own"
    loss_family = "margin"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes at most ``targets * (starts * (2 * steps + 1) + rounds)`` passes a sample, and one forward pass and a backward pass for
        each class to rank the classes.

        Raises:
            AttackError: the network is not made of affine layers and ReLUs, or too large.
        """
        from robustkd.certification.mixed_integer.relu_network import ReluNetwork  # late: it imports torch

        network, p = ReluNetwork(target.module, "polish"), self.params
        with frozen(target.module):
            search = Search.begin(target, batch, threat)
            if threat.eps > 0:
                classes = target_classes(search.oracle, batch.inputs, search.clean, search.standing, norm="linf", order="malt")
                runs = self._starts(search, batch, classes[:, : p.targets], rng)
                for number, row in enumerate(runs.rows.tolist()):
                    for attempt in runs.value[number].argsort(descending=True, stable=True).tolist():
                        if not search.success[row]:
                            goal, value = int(runs.goals[number, attempt]), float(runs.value[number, attempt])
                            self._polish(search, network, row, goal, runs.x[number, attempt], value)
            return search.result()

    def _starts(self, search: Search, batch: Batch, classes: Tensor, rng: SampleRng) -> TargetedRuns:
        """The best attempt towards each class, of the samples that still stand."""
        p, rows = self.params, search.standing
        best = TargetedRuns.starting_at(rows, classes[rows], search.ball.centre[rows])
        for number in range(p.starts):
            keep = ~search.success[best.rows]
            best = best.select(keep)
            start = search.ball.select(best.rows).random_point(rng.fork(number).select(best.rows))
            runs = TargetedRuns.starting_at(best.rows, best.goals, start)
            runs = run_targeted(search, batch, runs, AdaptiveStep(p.steps), p.steps)
            search.record(runs.rows, runs.result())
            best = best.or_better(runs)
        return best

    def _polish(self, search: Search, network: ReluNetwork, row: int, goal: int, x: Tensor, value: float) -> None:
        """Programs around ``x`` (*shape) towards one class, while they raise its margin."""
        from robustkd.certification.mixed_integer.program import maximum  # late: it imports torch

        rows = torch.tensor([row], device=x.device)
        ball, own = search.ball.select(rows), int(search.oracle.labels[row])
        radius = float(ball.eps)
        low, high = ball.project(ball.centre - radius)[0], ball.project(ball.centre + radius)[0]
        for _ in range(self.params.rounds):
            piece = network.near(x, low, high, self.params.free)
            solution = maximum(piece, piece.outputs[goal] - piece.outputs[own], self.params.seconds)
            if solution.pixels is None:
                return
            found = ball.project(solution.pixels.to(x).view_as(x).unsqueeze(0))
            logits = search.oracle.logits(found, rows)
            reached = margin(logits, search.oracle.labels[rows]).to(x.dtype)
            search.record(rows, SearchResult(found, reached, search.oracle.is_adversarial(logits, rows)))
            if search.success[row] or piece.is_whole or float(reached) <= value:
                return
            x, value = found[0], float(reached)
