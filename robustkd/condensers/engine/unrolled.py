"""Trajectory matching: a student that takes a few steps on the synthetic images is to end where an expert ends after epochs.

    theta_0 = theta*_t of a random expert and epoch t
    theta_n+1 = theta_n - a * grad l(theta_n; A(X_batch)),    n < N
    L = || theta_N - theta*_{t+M} ||^2 / || theta*_t - theta*_{t+M} ||^2,    down in the pixels X and the step size a

The gradient goes back through all N steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from robustkd.condensers.engine.augmentation import draw, mirrored
from robustkd.condensers.engine.experts import (
    ExpertLoss,
    ExpertParams,
    Flat,
    clean_loss,
    expert_builder,
    trajectories,
)
from robustkd.condensers.engine.synthetic import Learnt, MatchingParams, optimised, start_images
from robustkd.contracts import Arrays, Condenser, FitContext, SoftArrays, UsageError
from robustkd.contracts.params import AddedLater
from robustkd.lazy import F, nn, torch
from robustkd.targets.training import sgd

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_STEP = 1e-6
"""The learnt step size does not fall below it."""


class TrajectoryParams(MatchingParams):
    """Parameters of condensers that match trajectories."""

    steps: int = Field(5_000, ge=1, description="steps of the pixels")
    lr: float = Field(100.0, gt=0, description="of the pixels (SGD)")
    momentum: float = Field(0.5, ge=0, lt=1, description="of the pixels")
    step_lr: float = Field(1e-5, ge=0, description="learning rate of the student's step size")
    student_lr: float = Field(0.01, gt=0, description="the student's step size at the start")
    student_steps: int = Field(20, ge=1, description="N, steps of the student on the synthetic images")
    expert_epochs: int = Field(2, ge=1, description="M, epochs of the expert that they are to make up")
    min_start: int = Field(0, ge=0, description="the earliest epoch t that a student starts from")
    max_start: int = Field(25, ge=0, description="the latest")
    batch_size: int | None = Field(None, ge=1, description="synthetic images in a step of the student; default all")
    ema: float | None = Field(None, gt=0, lt=1, description="deploy a moving average of the pixels with this decay")
    experts: ExpertParams = Field(default_factory=ExpertParams, description="how the experts are trained")
    intermediate: Annotated[bool, AddedLater()] = Field(
        False, description="match after each epoch's share of the student's steps as well, not at the end alone"
    )
    perturbation: Annotated[float, AddedLater()] = Field(
        0.0, ge=0, description="deviation of noise on the weights that a student starts from, to their own"
    )


class TrajectoryMatching(Condenser):
    """A condenser by expert trajectories; a method says how experts are trained and what else is learnt."""

    @property
    def balanced(self) -> bool:
        """Whether each minibatch of the student has as many images of each class."""
        return False

    def condense(self, context: FitContext[Arrays]) -> Arrays:
        """Train the experts, and match them.

        Raises:
            UsageError: the experts are shorter than what is to be matched, or the model has statistics of its data.
        """
        p = self.params
        if p.max_start + p.expert_epochs > p.experts.epochs or p.min_start > p.max_start:
            raise UsageError(
                f"experts of {p.experts.epochs} epochs have no {p.expert_epochs} epochs behind epoch {p.max_start}",
                fix=f"give experts: {{epochs: {p.max_start + p.expert_epochs}}} or more, and min_start of at most max_start",
            )
        build = expert_builder(context, p.model, p.model_params)
        flat = Flat(build("student"))
        paths = trajectories(context, build, p.experts, *self.expert_loss(context))
        images, labels, logits = self.start(context, flat, paths)
        learnt = {"images": nn.Parameter(images), "student_lr": nn.Parameter(torch.tensor(p.student_lr, device=images.device))}
        scales = {"student_lr": p.step_lr / p.lr}
        if logits is not None:
            learnt["logits"], scales["logits"] = nn.Parameter(logits), p.label_lr / p.lr

        def loss(step: int, generator: torch.Generator) -> Tensor:
            path = paths[int(torch.randint(len(paths), (), generator=generator))]
            first, last = self.window(step)
            start = first + int(torch.randint(last - first + 1, (), generator=generator))
            goal = path[start : start + p.expert_epochs + 1].to(images.device)
            return self.matched(flat, goal, learnt, labels, generator)

        pace = Learnt(learnt, sgd(list(learnt.values()), p.lr, p.momentum), lambda step: p.lr, scales, p.ema)
        found = optimised(context, "matching", pace, loss, p.steps, p.model_dump(mode="json"))
        pixels, hard = found["images"].clamp(0, 1).cpu().numpy(), labels.cpu().numpy()
        if logits is None:
            return Arrays(pixels, hard)
        return SoftArrays(pixels, hard, found["logits"].softmax(1).cpu().numpy())

    def expert_loss(self, context: FitContext[Arrays]) -> tuple[ExpertLoss, str]:
        """What the experts minimise, and what tells it from others."""
        return clean_loss, "clean"

    def start(self, context: FitContext[Arrays], flat: Flat, paths: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images and labels to begin with, and where distributions are learnt, the (M, K) logits of these."""
        return *start_images(context, self.params), None

    def window(self, step: int) -> tuple[int, int]:
        """The first and the last epoch that a student may start from in a step."""
        return self.params.min_start, self.params.max_start

    def admitted(self, loss: Tensor) -> Tensor:
        """The loss as it is taken: a method may refuse one."""
        return loss

    def matched(self, flat: Flat, goal: Tensor, learnt: dict[str, Any], labels: Tensor, generator: torch.Generator) -> Tensor:
        """L of one student.

        Args:
            goal: (M + 1, P) of the expert, from the epoch that the student starts from.
        """
        p, theta = self.params, goal[0]
        if p.perturbation:
            theta = theta + p.perturbation * theta.std() * torch.randn(len(theta), generator=generator).to(theta)
        theta, away, terms = theta.requires_grad_(), (goal[0] - goal[-1]).square().sum().clamp_min(1e-12), []
        images, targets = learnt["images"], learnt["logits"].softmax(1) if "logits" in learnt else labels
        if p.fyi:
            images, targets, labels = torch.cat([images, mirrored(images)]), torch.cat([targets] * 2), torch.cat([labels] * 2)
        size, due = learnt["student_lr"].clamp_min(SMALLEST_STEP), self._due(len(goal) - 1)
        for step, rows in enumerate(self._batches(labels, generator), 1):
            rows = rows.to(images.device)
            augmented = draw(p.augment, generator)(images[rows])
            value = F.cross_entropy(flat(theta, augmented), targets[rows])
            (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
            theta = theta - size * gradient
            if step in due:
                terms.append((theta - goal[due[step]]).square().sum() / away)
        return self.admitted(torch.stack(terms).mean())

    def _due(self, epochs: int) -> dict[int, int]:
        """After which steps of the student it is compared with which epoch of the expert."""
        n = self.params.student_steps
        return (
            {n * e // epochs: e for e in range(1, epochs + 1) if n * e // epochs} if self.params.intermediate else {n: epochs}
        )

    def _batches(self, labels: Tensor, generator: torch.Generator) -> list[Tensor]:
        """The rows of each of the student's steps: passes over the synthetic images in random orders."""
        p, count = self.params, len(labels)
        size = min(p.batch_size or count, count)
        found: list[Tensor] = []
        while len(found) < p.student_steps:
            order = torch.randperm(count, generator=generator)
            if self.balanced:
                order = _dealt(order, labels.cpu())
            found += [part for part in order.split(size) if len(part) == size]
        return found[: p.student_steps]


def _dealt(order: Tensor, labels: Tensor) -> Tensor:
    """The same rows such that classes take turns."""
    turn = torch.zeros(len(order), dtype=torch.int64)
    for label in labels.unique():
        mine = labels[order] == label
        turn[mine] = torch.arange(int(mine.sum()))
    return order[torch.argsort(turn, stable=True)]
