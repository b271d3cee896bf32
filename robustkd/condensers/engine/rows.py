"""Which rows of the training data belong to each class, and how some of them are drawn."""

from __future__ import annotations

import numpy as np
from pydantic import Field, model_validator

from robustkd.contracts import Arrays, FitContext, Params
from robustkd.defenses.training.seeding import derived_seed


class SelectionParams(Params):
    """How many images are chosen: so many of each class, or a share of all."""

    images_per_class: int | None = Field(
        None, ge=1, description="images of each class (IPC); default 10, unless a share is given"
    )
    share: float | None = Field(
        None, gt=0, le=1, description="the share of each class's images, in the place of images_per_class"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> SelectionParams:
        if self.images_per_class is not None and self.share is not None:
            raise ValueError("images_per_class and share say the same in two ways: leave one out")
        return self

    def count(self, available: int) -> int:
        """How many of ``available`` images of a class are chosen; one at least."""
        if self.share is not None:
            return max(1, round(self.share * available))
        return min(self.images_per_class or 10, available)


def rows_by_class(labels: np.ndarray) -> dict[int, np.ndarray]:
    """The rows of each class that has samples, in order."""
    return {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}


def generator(context: FitContext[Arrays], purpose: str) -> np.random.Generator:
    """Random numbers of one purpose, from the training's seed."""
    return np.random.default_rng(derived_seed(context.seed, f"condense/{purpose}"))


def random_rows(context: FitContext[Arrays], params: SelectionParams) -> np.ndarray:
    """(M,) int64 rows in rising order: of each class as many as ``params`` say, at random."""
    rng = generator(context, "rows")
    chosen = [rng.permutation(rows)[: params.count(len(rows))] for rows in rows_by_class(context.train.labels).values()]
    return np.sort(np.concatenate(chosen))
