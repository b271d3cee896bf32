"""Standard training: no defense, the baseline that every other one is compared with.

    min_theta  mean CE(f(x), y)

Good as the reference of clean accuracy. It withstands no attack that knows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from robustkd.contracts import FitContext
from robustkd.defenses.training import Minibatch, NetworkParams, OneNetwork, Prepared, Recipe
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class StandardRecipe(Recipe):
    """The cross entropy on the clean images, without any attack."""

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The cross entropy on the clean images, CE(f(x), y)."""
        return batch.cross_entropy(target(batch.x)), {}


class Standard(OneNetwork):
    """A network trained on clean images only, the baseline of every comparison."""

    Params = NetworkParams
    source = "no paper: the usual training, the baseline"
    undefended = True
    learns_soft_labels = True

    @contextmanager
    def training(self, context: FitContext, student: ClassifierTarget) -> Iterator[Prepared]:
        """The cross entropy, and the network."""
        yield StandardRecipe(), student
