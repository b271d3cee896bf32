"""RAD: robust active distillation. Which images should a teacher label that is sometimes wrong, so that its errors cost least?

    g_i = 1 - (p_1 - p_2) + 0.01          of the student's two largest probabilities: how informative the label would be
    p_i  proportional to  1 / g_i  on the k images of the largest g, 0 elsewhere,      k = argmax_k (k - m) / sum_{i <= k} 1 / g_i

The p of a game: whoever draws wants much of  sum p_i g_i,  and an adversary takes m images away, those where the teacher errs. Equal stakes
p_i g_i on the support leave nothing to aim at. Of b images to be labelled each is drawn with probability min(1, c p_i), such that they sum
to b, by systematic draws of the sorted probabilities. The labels are the teacher's, not the data's.

From the authors: informativeness by the margin, and that the distribution is an equilibrium against m wrong labels. From us: the closed
form above, which the abstract does not give and which was derived anew and compared with a linear program; what is done where c p_i is
above 1. Without errors (m = 0) the most informative image alone has all of p, and a draw of b images takes the b largest.

Control: ``random-subset`` with a recipe ``kd`` of the same teacher, and ``errors: 0``, which is plain margin sampling.

Source: Baykal et al.: Robust active distillation (ICLR 2023), arXiv:2210.01213; read in the abstract only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from robustkd.condensers.engine.embedding import answers
from robustkd.condensers.engine.rows import generator
from robustkd.contracts import Arrays, Condenser, FitContext, Params, TargetRef, UsageError

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 0.01
"""How informative an image is that the student is certain about."""


class RADParams(Params):
    student: TargetRef = Field(description="the defense whose model's margins say how informative an image is")
    teacher: TargetRef = Field(description="the defense whose model labels what is drawn")
    images: int = Field(100, ge=1, description="b, images that are labelled")
    errors: float = Field(
        0.1, ge=0, lt=1, description="m, wrong labels of the teacher that are reckoned with, as a share of the images"
    )


class RAD(Condenser):
    """Images drawn so that a teacher's errors cost least, with its labels."""

    Params: ClassVar[type[Params]] = RADParams
    source = "Baykal et al. 2023, arXiv:2210.01213"

    def condense(self, context: FitContext[Arrays]) -> Arrays:
        """Draw, and label.

        Raises:
            UsageError: more images are asked for than there are.
        """
        p, count = self.params, len(context.train)
        if p.images > count:
            raise UsageError(f"{p.images} images are to be labelled, there are {count}", fix=f"give images: {count} or fewer")
        gains = informativeness(answers(context, p.student))
        wanted = inclusion(equilibrium(gains, round(p.errors * count)), gains, p.images)
        rows = systematic(wanted, generator(context, "rows"))
        chosen = context.train.select(rows)
        labels = answers(context, p.teacher).argmax(1).cpu().numpy()[rows]
        return Arrays(chosen.kept().images, labels)


def informativeness(logits: Tensor) -> np.ndarray:
    """(N,) g of (N, K) logits."""
    top = logits.softmax(1).topk(2, dim=1).values
    return np.asarray((1 - (top[:, 0] - top[:, 1]) + SMALLEST).cpu().numpy(), dtype=np.float64)


def equilibrium(gains: np.ndarray, errors: int) -> np.ndarray:
    """(N,) p of sum 1, from (N,) g and m."""
    order = np.argsort(-gains, kind="stable")
    inverse = np.cumsum(1 / gains[order])
    size = int(np.argmax((np.arange(1, len(gains) + 1) - errors) / inverse)) + 1
    p = np.zeros(len(gains))
    p[order[:size]] = 1 / gains[order[:size]] / inverse[size - 1]
    return p


def inclusion(p: np.ndarray, gains: np.ndarray, count: int) -> np.ndarray:
    """(N,) probabilities of being drawn, none above 1, that sum to ``count``: min(1, c p), and where p leaves too few, the next by g."""
    support = int((p > 0).sum())
    wanted: np.ndarray
    if support <= count:
        wanted = (p > 0).astype(float)
        rest = np.argsort(np.where(p > 0, -np.inf, gains))[::-1][: count - support]
        wanted[rest] = 1
        return wanted
    wanted = np.zeros_like(p)
    certain: np.ndarray = np.zeros(len(p), dtype=bool)
    while True:
        free = ~certain
        wanted[free] = p[free] * (count - certain.sum()) / p[free].sum()
        wanted[certain] = 1
        over = free & (wanted > 1)
        if not over.any():
            return wanted
        certain |= over


def systematic(wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows in rising order, each drawn with its probability, as many as these sum to: one random number, in a random order of the rows."""
    order = rng.permutation(len(wanted))
    ends = np.cumsum(wanted[order])
    total = round(float(ends[-1]))
    marks = rng.random() + np.arange(total)
    return np.sort(order[np.searchsorted(ends * (total / ends[-1]), marks, side="right").clip(max=len(wanted) - 1)])
