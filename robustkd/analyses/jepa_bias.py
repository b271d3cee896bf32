"""Does an encoder attend to what varies, or to what another view of the image predicts? Beside the order in which two objectives learn.

    views of an image:     x, y = clip( contrast * image + brightness + noise ),  drawn twice
    of each direction i:   lambda_i = cov(x_i, y_i),   rho_i = lambda_i / var(x_i),   the share of it that the other view predicts

A deep linear encoder w of depth L, whose layers and predictor begin equal and small, learns each direction on its own. By gradient flow on
half the squared error, of the other view's *features* (JEPA) or of the other view itself (MAE):

    JEPA   dw/dt = L lambda ( w^(3 - 1/L)  -  w^3 / rho ),    w -> rho^L
    MAE    dw/dt = L lambda ( w^(2 - 1/L)  -  w^3 / rho ),    w -> rho^(L / (L + 1))

With a = w^(1/L) both have a closed form for the time from a_0 to a_1:

    JEPA   t = rho/lambda [ ln(a / (rho - a)) / rho^n - sum_{m=2..n} a^(1-m) / ((m - 1) rho^(n-m+1)) ],                 n = 2 L
    MAE    t = 1/lambda sum_{k>=0} a^(k(L+1) - L + 1) / ((k(L+1) - L + 1) rho^k)

JEPA prefers directions of a large rho, MAE those of a large lambda, the more the deeper the encoder is. The table has both times to half of
the end for each principal direction of the images, and how much the analysed model's features move along it: a model that attends to
directions of a small rho attends to noise.

From the authors (abstract alone): the question, deep linear encoders on diagonal data, and that JEPA avoids noisy features. From us: the
dynamics, derived here for a predictor that is as large as a layer, the closed forms, which are compared with a simulation of the
equations (``simulation_error``), and the measurement on a trained network by principal directions of views. The control of the sensitivity
is the same of the network in fresh weights, where its kind can make such.

Source: Littwin et al.: How JEPA avoids noisy features: the implicit bias of deep linear self distillation networks (NeurIPS 2024),
arXiv:2407.03475, abstract.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from robustkd.contracts import Analysis, Batch, Params, Table, Target, TargetError, ThreatModel, UsageError
from robustkd.contracts.random import SampleRng, preserved_rng, seed_torch
from robustkd.lazy import torch
from robustkd.scoring.ranks import chance_of_ranks, rank_correlation
from robustkd.targets import ClassifierTarget, frozen
from robustkd.targets.encoder import EncoderTarget

if TYPE_CHECKING:
    from torch import Tensor

_STEP = 1e-2
"""How far features are looked at along a direction, in pixel units."""


class JEPABiasParams(Params):
    """The views, the directions, and the depth of the linear encoder."""

    depth: int = Field(3, ge=2, description="L, layers of the linear encoder")
    directions: int = Field(12, ge=2, description="principal directions of the images that are looked at; fewer of few images")
    samples: int = Field(500, ge=3, description="images at most")
    brightness: float = Field(0.3, ge=0, description="each view is made brighter or darker by at most so much")
    contrast: float = Field(0.3, ge=0, lt=1, description="and its contrast multiplied by 1 plus or minus at most so much")
    noise: float = Field(0.1, ge=0, description="deviation of the noise of each pixel")
    start: float = Field(0.05, gt=0, lt=1, description="where each w begins, as a share of the smaller end of both objectives")


class JEPABias(Analysis):
    """Along which directions features move, beside what is predictable and when two objectives would learn it."""

    Params = JEPABiasParams
    source = "Littwin et al. 2024, arXiv:2407.03475"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, seed: int) -> Table:
        """A row for each direction; ``metrics``: rank correlations of the sensitivity, the influence ratio, the simulation's error.

        Raises:
            UsageError: there are fewer than two directions that a second view predicts.
        """
        p = self.params
        count = min(len(batch), p.samples)
        images, index = batch.inputs[:count], batch.index[:count]
        flat = images.flatten(1).cpu().double().numpy()
        _, _, directions = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
        directions = directions[: min(p.directions, count - 1)]
        views = [self._view(images, SampleRng(seed, index, f"jepa-bias/{number}")) @ directions.T for number in range(2)]
        lam, rho = moments(*views)
        told = np.flatnonzero(lam > 0)
        if len(told) < 2:
            raise UsageError(
                f"{len(told)} directions of {count} images are predicted by another view",
                fix="take more test samples, or weaker views",
            )
        lam, rho, directions = lam[told], rho[told], directions[told]
        ends = np.minimum(rho**p.depth, rho ** (p.depth / (p.depth + 1)))
        begin = p.start * float(ends.min())
        jepa = np.array([jepa_time(a, b, p.depth, begin, 0.5 * b**p.depth) for a, b in zip(lam, rho, strict=True)])
        mae = np.array(
            [mae_time(a, b, p.depth, begin, 0.5 * b ** (p.depth / (p.depth + 1))) for a, b in zip(lam, rho, strict=True)]
        )
        moved = sensitivity(target, images, directions)
        metrics = {
            "rank_correlation_with_rho": rank_correlation(moved, rho),
            "rank_correlation_with_variance": rank_correlation(moved, lam / rho),
            "rank_correlation_with_jepa": rank_correlation(moved, -jepa),
            "rank_correlation_with_mae": rank_correlation(moved, -mae),
            "chance": chance_of_ranks(len(told)),
            "influence_ratio": influence_ratio(moved, rho),
            "simulation_error": simulation_error(lam, rho, p.depth, begin, jepa, mae),
        }
        fresh = _untrained(target, seed)
        if fresh is not None:
            metrics["influence_ratio_untrained"] = influence_ratio(sensitivity(fresh, images, directions), rho)
        columns = [lam / rho, rho, jepa, mae, moved]
        return Table(
            caption=f"principal directions of {count} images: the variance of a view along it, the share rho that another view predicts, "
            f"the times at which a linear encoder of depth {p.depth} has learnt half of it, and how far the unit features move along it",
            rows=[f"direction {number + 1}" for number in told.tolist()],
            columns=["variance", "rho", "time, JEPA", "time, MAE", "sensitivity"],
            values=[[float(value) for value in row] for row in zip(*columns, strict=True)],
            metrics=metrics,
        )

    def _view(self, images: Tensor, rng: SampleRng) -> np.ndarray:
        """(N, P) float64, a view of each image, its mean over the images taken away."""
        p, shape = self.params, images.shape[1:]
        one = (1,) * len(shape)
        contrast = rng.fork("contrast").uniform(one, 1 - p.contrast, 1 + p.contrast)
        brightness = rng.fork("brightness").uniform(one, -p.brightness, p.brightness)
        seen = (contrast * images + brightness + p.noise * rng.fork("noise").normal(shape)).clamp(0, 1)
        flat = seen.flatten(1).cpu().double().numpy()
        return flat - flat.mean(0)


def moments(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D,) lambda and rho of (N, D) coordinates of two views of mean 0, which are alike in distribution."""
    lam = (x * y).mean(0)
    return lam, lam / ((x * x).mean(0) + (y * y).mean(0)) * 2


def jepa_time(lam: float, rho: float, depth: int, begin: float, end: float) -> float:
    """The time from w = ``begin`` to ``end`` below rho^L of the JEPA dynamics."""
    n = 2 * depth

    def upto(a: float) -> float:
        powers = sum(a ** (1 - m) / ((m - 1) * rho ** (n - m + 1)) for m in range(2, n + 1))
        return math.log(a / (rho - a)) / rho**n - powers

    return rho / lam * (upto(end ** (1 / depth)) - upto(begin ** (1 / depth)))


def mae_time(lam: float, rho: float, depth: int, begin: float, end: float) -> float:
    """The time from w = ``begin`` to ``end`` below rho^(L / (L + 1)) of the MAE dynamics; ``depth`` is 2 or more."""

    def upto(a: float) -> float:
        total, k, ratio = 0.0, 0, a ** (depth + 1) / rho
        while True:
            power = k * (depth + 1) - depth + 1
            term = a ** (1 - depth) * ratio**k / power
            total += term
            if k and abs(term) < 1e-15 * abs(total):
                return total
            k += 1

    return (upto(end ** (1 / depth)) - upto(begin ** (1 / depth))) / lam


def slope(w: np.ndarray, lam: np.ndarray, rho: np.ndarray, depth: int, objective: str) -> np.ndarray:
    """(D,) dw/dt of (D,) encoders under ``jepa`` or ``mae``."""
    power = 3 if objective == "jepa" else 2
    found: np.ndarray = depth * lam * (w ** (power - 1 / depth) - w**3 / rho)
    return found


def simulation_error(
    lam: np.ndarray, rho: np.ndarray, depth: int, begin: float, jepa: np.ndarray, mae: np.ndarray, steps: int = 2000
) -> float:
    """The largest relative distance from half of its end of w at the closed form's time, by steps of Runge and Kutta's of order 4."""
    worst = 0.0
    for objective, times, power in (("jepa", jepa, depth), ("mae", mae, depth / (depth + 1))):
        logs, size = np.full_like(lam, math.log(begin)), times / steps

        def fall(log_w: np.ndarray, objective: str = objective) -> np.ndarray:
            w = np.exp(log_w)
            return slope(w, lam, rho, depth, objective) / w

        for _ in range(steps):  # of log w, which changes evenly where w is small
            k1 = fall(logs)
            k2 = fall(logs + size * k1 / 2)
            k3 = fall(logs + size * k2 / 2)
            k4 = fall(logs + size * k3)
            logs = logs + size * (k1 + 2 * k2 + 2 * k3 + k4) / 6
        worst = max(worst, float(np.abs(np.exp(logs) / (0.5 * rho**power) - 1).max()))
    return worst


def sensitivity(target: Target, images: Tensor, directions: np.ndarray) -> np.ndarray:
    """(D,) the mean length, over (N, ..) images, of the change of unit features along (D, P) directions, for each unit of change."""
    encoder, told = EncoderTarget(target), []
    with frozen(target.module), torch.no_grad():
        for direction in directions:
            way = torch.tensor(direction, dtype=images.dtype).view(1, *images.shape[1:]).to(images.device)
            ends = [torch.cat([encoder(part + sign * _STEP * way) for part in images.split(256)]) for sign in (1, -1)]
            told.append(float((ends[0] - ends[1]).norm(dim=1).mean()) / (2 * _STEP))
    return np.array(told)


def influence_ratio(moved: np.ndarray, rho: np.ndarray) -> float:
    """The mean sensitivity along the third of the directions of the smallest rho, over that along the third of the largest."""
    order, third = np.argsort(rho), max(1, len(rho) // 3)
    signal = float(moved[order[-third:]].mean())
    return float(moved[order[:third]].mean()) / signal if signal else 0.0


def _untrained(target: Target, seed: int) -> Target | None:
    if not isinstance(target, ClassifierTarget):
        return None
    try:
        with preserved_rng(target.device):
            seed_torch(seed)
            fresh = target.untrained().to(target.device)
    except TargetError:  # it cannot be built again
        return None
    fresh.module.eval()
    return fresh
