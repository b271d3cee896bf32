"""AST: alignment with smooth expert trajectories. Experts whose weights and losses change gently, and a student that is led more closely.

    experts:  loss CE(f(x), y) + lambda * || grad_x CE(f(x), y) ||^2,   the change of all weights in a step is at most ``clip``
    student:  starts from theta*_t + noise;  minibatches with as many images of each class;  compared after each epoch's share of its steps
    X starts from representative images: those next to the centres of clusters of each class's pixels

From the authors: the six points. Read in the abstract only: the size of penalty, clip and noise, the space of the clusters, and that the
comparison on the way is at whole epochs are ours. A public implementation was not found.

Control: ``mtt``, which is this with every point taken out (``gradient_penalty: 0``, ``clip`` off, ``perturbation: 0``, ``intermediate:
false``, random start), and ``random-subset``.

Source: Shen et al.: Efficient dataset distillation via alignment with smooth and high-quality expert trajectories (AST, 2023),
arXiv:2310.10541; read in the abstract only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from robustkd.condensers.engine.embedding import embedded
from robustkd.condensers.engine.experts import ExpertLoss, ExpertParams, Flat
from robustkd.condensers.engine.rows import generator, rows_by_class
from robustkd.condensers.engine.synthetic import start_images
from robustkd.condensers.engine.unrolled import TrajectoryMatching, TrajectoryParams
from robustkd.contracts import Arrays, FitContext, Params
from robustkd.defenses.training.batches import Minibatch
from robustkd.lazy import F, torch
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor

_ROUNDS = 20
"""Of the clustering."""


class SmoothExpertParams(ExpertParams):
    """How AST's experts are trained."""

    clip: float | None = Field(
        1.0, gt=0, description="the longest step of all weights together; longer ones are shortened to it"
    )
    gradient_penalty: float = Field(0.1, ge=0, description="lambda, of the squared gradient with respect to the images")


class ASTParams(TrajectoryParams):
    intermediate: bool = Field(
        True, description="match after each epoch's share of the student's steps as well, not at the end alone"
    )
    perturbation: float = Field(
        0.01, ge=0, description="deviation of noise on the weights that a student starts from, to their own"
    )
    representative: bool = Field(True, description="start next to cluster centres of each class; false: from random images")
    balanced: bool = Field(True, description="minibatches of the student with as many images of each class")
    experts: SmoothExpertParams = Field(default_factory=SmoothExpertParams, description="how the experts are trained")


class AST(TrajectoryMatching):
    """Images that are matched with smooth trajectories, more closely."""

    Params: ClassVar[type[Params]] = ASTParams
    source = "Shen et al. 2023, arXiv:2310.10541"

    def expert_loss(self, context: FitContext[Arrays]) -> tuple[ExpertLoss, str]:
        """The cross entropy, and the penalty of its gradient."""
        weight = self.params.experts.gradient_penalty

        def loss(target: ClassifierTarget, batch: Minibatch) -> Tensor:
            if not weight:
                return F.cross_entropy(target(batch.x), batch.y)
            x = batch.x.detach().requires_grad_()
            losses = F.cross_entropy(target(x), batch.y, reduction="none")
            (gradient,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
            return losses.mean() + weight * gradient.flatten(1).square().sum(1).mean()

        return loss, f"gradient penalty {weight}"

    def start(self, context: FitContext[Arrays], flat: Flat, paths: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images next to the centres of clusters."""
        p = self.params
        if not p.representative or p.start == "noise":
            return *start_images(context, p), None
        pixels, rng, chosen = embedded(context, None).numpy(), generator(context, "clusters"), []
        for rows in rows_by_class(context.train.labels).values():
            chosen.append(rows[next_to_centres(pixels[rows], min(p.images_per_class, len(rows)), rng)])
        part = context.train.select(np.sort(np.concatenate(chosen)))
        images, labels = torch.tensor(part.unit(), device=context.device), torch.tensor(part.labels, device=context.device)
        return images, labels.long(), None

    @property
    def balanced(self) -> bool:
        """Whether each minibatch of the student has as many images of each class."""
        return bool(self.params.balanced)


def next_to_centres(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) int64, different rows of the (N, D) ``points``, each next to the centre of one of ``count`` clusters (Lloyd's rounds)."""
    centres = points[rng.permutation(len(points))[:count]].copy()
    for _ in range(_ROUNDS):
        nearest = _distances(points, centres).argmin(1)
        for cluster in np.unique(nearest):
            centres[cluster] = points[nearest == cluster].mean(0)
    away = _distances(points, centres)
    found: list[int] = []
    for cluster in range(count):
        away[found, cluster] = np.inf
        found.append(int(away[:, cluster].argmin()))
    return np.array(found, dtype=np.int64)


def _distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(N, M) squared."""
    squares = (points**2).sum(1)[:, None] + (centres**2).sum(1) - 2 * points @ centres.T
    return np.asarray(squares)
