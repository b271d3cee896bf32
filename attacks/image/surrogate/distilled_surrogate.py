"""Attacks on a student that was distilled from the target, tried on the target and refined by queries.

    1  ask the target about training images and about points near them (see ``student``), and distil a smooth network
    2  climb the margin on the student: away from the label, and towards each of the likeliest classes
    3  ask the target about the point that each run ends at
    4  random search on the target from the best of these points

It needs no gradient of the target, and not even a smooth target: the student answers smoothly wherever the target does on average.
So it is the instrument against whatever makes the gradient useless, such as test-time optimisation, purification, hashing, a head
of nearest neighbours, or votes.

Good where the student's answers resemble the target's, which they do on small images. Where the data are few and the images
large, the student is a poor guide: then stage 4 does most of the work.

Source: Papernot et al.: Practical black-box attacks against machine learning (2017), arXiv:1602.02697. Asking about random and
attacked points, the loss on differences and the last stage are ours.
"""

from __future__ import annotations

from copy import copy
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field

from robustkd.attacks.image.black_box.square import SQUARE_REVISIONS, square_update
from robustkd.attacks.image.engine.ascent import Search, SearchResult, maximize, no_gradient
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.losses import targeted
from robustkd.attacks.image.engine.objective import bound, for_batch
from robustkd.attacks.image.engine.oracle import Objective, Oracle, frozen
from robustkd.attacks.image.engine.target_classes import wrong_classes
from robustkd.attacks.image.engine.trend import EarlyStopByTrend
from robustkd.attacks.image.gradient.apgd import apgd_start, run_apgd
from robustkd.attacks.image.surrogate.student import Points, distil_student
from robustkd.contracts import Arrays, Attack, AttackResult, Batch, Params, Target, ThreatModel, UsageError
from robustkd.contracts.random import SampleRng, preserved_rng, seed_torch
from robustkd.lazy import torch
from robustkd.targets.rejection import classifier_alone
from robustkd.targets.substitute import SubstituteTarget

if TYPE_CHECKING:
    from torch import Tensor, nn

_ROUND_STEPS = 10  # of the attacks that make the points of a round
_FIRST_WINDOW = 0.3  # share of the image in the first window of the random search: 0.8 would undo the point it starts from


class DistilledSurrogateParams(Params):
    """Parameters of ``distilled-surrogate``; it asks the target about ``samples * (1 + near + rounds)`` images while it learns."""

    samples: int = Field(500, ge=1, description="training images that the target is asked about, at most")
    near: int = Field(8, ge=1, description="random points of each image's ball that it is asked about")
    rounds: int = Field(2, ge=0, description="rounds in which the student is attacked and the target asked about the results")
    training_steps: int = Field(150, ge=1, description="steps of the student's training, in each round")
    width: int = Field(16, ge=1, description="channels of the student's first convolution")
    steps: int = Field(30, ge=1, description="steps of each run of APGD on the student")
    classes: int = Field(
        2, ge=0, description="likeliest wrong classes that runs on the student aim at, beside leaving the label"
    )
    queries: int = Field(
        500, ge=0, description="of the random search on the target afterwards; it gives up where it gets nowhere"
    )


class DistilledSurrogate(Attack):
    """Transfer from a student that was distilled from the target's answers; passes are counted on the target alone."""

    Params = DistilledSurrogateParams
    norms = ("linf", "l2", "l1")
    revisions = MappingProxyType({"l1": SQUARE_REVISIONS["l1"] + 1})  # those of its Square, and that of APGD's starts
    goals = ("untargeted", "targeted")
    gradients = False
    learns = True
    source = "Papernot et al. 2017, arXiv:1602.02697"
    loss_family = "margin"

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        self.student: nn.Module | None = None

    def fit(self, target: Target, data: Arrays, threat: ThreatModel, rng: SampleRng) -> Self:
        """A copy of this attack that holds the student. The labels of ``data`` are not looked at."""
        p = self.params
        chosen = rng.fork("choice").uniform((1,)).squeeze(1).argsort(stable=True)[: p.samples]
        rng = rng.select(chosen)
        images = torch.from_numpy(data.select(chosen.cpu().numpy()).unit()).to(chosen.device)
        ball = Ball.around(images, threat.eps, threat.norm, target.bounds)
        near = [(ball.random_start if number % 2 else ball.random_point)(rng.fork(number)) for number in range(p.near)]
        fitted = copy(self)
        with frozen(target.module), preserved_rng(images.device):
            seed_torch(rng.seed)
            fitted.student = distil_student(
                target,
                images,
                target.num_classes,
                near=near,
                attacked=[_attacked(target, images, threat, rng.fork(f"round/{number}")) for number in range(p.rounds)],
                width=p.width,
                steps=p.training_steps,
            )
        return fitted

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes ``classes + 1`` queries of the target a sample, one for the clean image, and at most ``queries`` more.

        Raises:
            UsageError: it was not fitted.
        """
        if self.student is None:
            raise UsageError("a distilled surrogate must learn before it is used", fix="call fit, and run what it returns")
        margin = for_batch("margin", batch)
        with frozen(target.module):
            search = Search.begin(target, batch, threat)
            oracle = Oracle(SubstituteTarget(target, self.student, never_adversarial=True), batch)
            for objective in self._objectives(search, batch, margin):
                if not len(rows := search.standing):
                    break
                ball = search.ball.select(rows)
                found = run_apgd(oracle, rows, ball, ball.centre, objective=objective, steps=self.params.steps)
                _try(search, rows, found.x, margin)
            self._refine(search, margin, rng)
            return search.result()

    def _objectives(self, search: Search, batch: Batch, margin: Objective) -> list[Objective]:
        if batch.goals is not None:
            return [margin]
        likeliest = wrong_classes(search.clean, batch.labels)[:, : self.params.classes]
        return [margin, *(bound(targeted("margin"), goals) for goals in likeliest.unbind(1))]

    def _refine(self, search: Search, margin: Objective, rng: SampleRng) -> None:
        rows, queries = search.standing, self.params.queries
        if not (len(rows) and queries and search.adversarial.ndim == 4):
            return
        ball = search.ball.select(rows)
        found = maximize(
            search.oracle,
            rows,
            ball,
            search.adversarial[rows],
            objective=margin,
            update=square_update(ball, rng, queries, _FIRST_WINDOW),
            steps=queries - 1,
            estimator=no_gradient,
            early_stop=EarlyStopByTrend(margin(search.clean, search.everybody), queries),
        )
        search.record(rows, found)


def _try(search: Search, rows: Tensor, x: Tensor, margin: Objective) -> None:
    """One query of the target about each point."""
    logits = search.oracle.logits(x, rows)
    search.record(rows, SearchResult(x, margin(logits, rows).to(x.dtype), search.oracle.is_adversarial(logits, rows)))


def _attacked(target: Target, images: Tensor, threat: ThreatModel, rng: SampleRng) -> Points:
    """The points of a round: what APGD on the student finds, away from what the student says of the image."""

    def points(student: nn.Module) -> Tensor:
        student.requires_grad_(False)
        answer = SubstituteTarget(target, student, never_adversarial=True)
        with torch.no_grad():
            labels = torch.cat([classifier_alone(answer)(part).argmax(1) for part in images.split(256)])
        batch = Batch(images, labels, rng.index)
        rows = torch.arange(len(images), device=images.device)
        objective = for_batch("margin", batch)
        ball = Ball.around(images, threat.eps, threat.norm, target.bounds)
        start = apgd_start(ball, rng)
        parts = [
            run_apgd(Oracle(answer, batch), part, ball.select(part), start[part], objective=objective, steps=_ROUND_STEPS).x
            for part in rows.split(256)
        ]
        return torch.cat(parts)

    return points
