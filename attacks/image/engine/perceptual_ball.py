"""The constraint of a perceptual budget: the images whose features lie within eps of the clean one's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from typing_extensions import override

from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.engine.oracle import gradient_of
from robustkd.contracts import PerceptualBudget
from robustkd.contracts.image_changes.perceptual import Features
from robustkd.contracts.random import SampleRng
from robustkd.contracts.target import Bounds
from robustkd.lazy import torch
from robustkd.scoring.distances import per_sample
from robustkd.targets.passes import PassCounter

if TYPE_CHECKING:
    from torch import Tensor

_MARGIN = 1e-3
"""The share of eps that an attack leaves unused: a network rounds otherwise in a batch of another size."""
_HALVINGS = 8


@dataclass(frozen=True)
class PerceptualBall(Ball):
    """{x : ||features(x) - features(centre)|| <= eps, low <= x <= high}, one for each sample.

    ``norm`` is linf: a step has the same length in each pixel. Every pass for features is counted.

    Attributes:
        features: (A, *shape) -> (A, D).
        clean: (B, D) those of the centres.
        rows: (B,) the samples that the passes belong to.
        passes: what counts them.
    """

    features: Features = field(kw_only=True)
    clean: Tensor = field(kw_only=True)
    rows: Tensor = field(kw_only=True)
    passes: PassCounter = field(kw_only=True)

    @classmethod
    def of(cls, centre: Tensor, eps: Tensor, bounds: Bounds, budget: PerceptualBudget, passes: PassCounter) -> PerceptualBall:
        """The balls around a batch: one forward pass a sample.

        Raises:
            UsageError: the network of the budget is not at hand.
        """
        features, rows = budget.known_features, torch.arange(len(centre), device=centre.device)
        with torch.no_grad():
            clean = features(centre)
        passes.spend(rows, forwards=1)
        return cls(centre, eps, "linf", bounds, features=features, clean=clean, rows=rows, passes=passes)

    @override
    def select(self, rows: Tensor | slice) -> PerceptualBall:
        return replace(self, centre=self.centre[rows], eps=self.eps[rows], clean=self.clean[rows], rows=self.rows[rows])

    @property
    def reach(self) -> Tensor:
        """(B,) the distances that an attack goes to: eps, less what another rounding may need."""
        return (1 - _MARGIN) * self.eps

    def seen(self, x: Tensor) -> Tensor:
        """(B, D) the features of (B, *shape) points, without a graph."""
        with torch.no_grad():
            found = self.features(x)
        self.passes.spend(self.rows, forwards=1)
        return found

    def distance(self, x: Tensor) -> Tensor:
        """(B,) how far (B, *shape) points are from the centres."""
        return self._from_clean(self.seen(x)).to(x.dtype)

    def distance_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) the distances, and (B, *shape) their gradients: one forward and one backward pass."""
        found, pulled_back = self.linearised(x)
        away = found - self.clean
        length = self._from_clean(found)
        return length.to(x.dtype), pulled_back(away / length.unsqueeze(1).clamp_min(torch.finfo(away.dtype).tiny))

    def linearised(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """(B, D) the features, and the function that pulls (B, D) vectors back by their Jacobian to (B, *shape): a backward pass each."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            found = self.features(x)
        self.passes.spend(self.rows, forwards=1)

        def pulled_back(vectors: Tensor) -> Tensor:
            self.passes.spend(self.rows, backwards=1)
            return gradient_of(found, x, vectors, again=True)

        return found.detach(), pulled_back

    def holds(self, distance: Tensor) -> Tensor:
        """(B,) bool, whether points at these distances are inside."""
        return distance <= self.reach

    @override
    def project(self, x: Tensor) -> Tensor:
        """The points themselves where they are inside, else the last point inside that is found on the line from the centre.

        It is looked for by regula falsi: the distance grows nearly as a linear function along the line. One forward pass, and up to eight
        more for the samples that are outside.
        """
        x = x.clamp(*self.bounds)
        length = self.distance(x)
        outside = (~self.holds(length)).nonzero().squeeze(1)
        if len(outside):
            x = x.clone()
            x[outside] = self.select(outside)._on_the_line(x[outside], length[outside])
        return x

    def _on_the_line(self, x: Tensor, length: Tensor) -> Tensor:
        low, high = torch.zeros_like(length), torch.ones_like(length)
        at_low, at_high = torch.zeros_like(length), length
        close = torch.zeros_like(length, dtype=torch.bool)
        for _ in range(_HALVINGS):
            share = (0.99 * self.reach - at_low) / (at_high - at_low).clamp_min(1e-12)
            middle = low + share.clamp(0.05, 0.95) * (high - low)
            found = self.distance(self._between(x, middle))
            inside = self.holds(found) & ~close
            low, at_low = torch.where(inside, middle, low), torch.where(inside, found, at_low)
            beyond = ~self.holds(found) & ~close
            high, at_high = torch.where(beyond, middle, high), torch.where(beyond, found, at_high)
            close = close | (at_low >= 0.97 * self.reach)
            if bool(close.all()):
                break
        return self._between(x, low)

    def _between(self, x: Tensor, share: Tensor) -> Tensor:
        return self.centre + per_sample(share, x) * (x - self.centre)

    @override
    def random_point(self, rng: SampleRng) -> Tensor:
        """A point in a random direction, at the bound: random numbers of +-eps added to the pixels, and projected."""
        noise = rng.uniform(self.centre.shape[1:], -1, 1, dtype=self.centre.dtype)
        return self.project(self.centre + per_sample(self.eps, self.centre) * noise)

    def _from_clean(self, found: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(found - self.clean, dim=1)
        return length


def squared(vectors: Tensor) -> Tensor:
    """(B, 1, ..) the squared 2-norm of each row, above 0."""
    return per_sample(vectors.flatten(1).square().sum(1), vectors).clamp_min(1e-20)


def unit(vectors: Tensor) -> Tensor:
    """Each row divided by its 2-norm."""
    return vectors / squared(vectors).sqrt()
