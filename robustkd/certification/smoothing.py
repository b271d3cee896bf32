"""The certificate of a smoothed classifier: the radius in l2 within which its most likely class under noise stays so.

    c     the class that the network gives to most of n_0 noisy copies
    k     of n further copies, those that it gives class c
    p     the lower end of the one-sided Clopper-Pearson interval of k / n at confidence 1 - alpha
    R     sigma Phi^-1(p) where p > 1/2; elsewhere it abstains

The certificate is of the classifier that infinitely many draws make, and wrong with a probability of at most alpha a sample. The noise
is a function of the seed and the sample's position.

Source: Cohen, Rosenfeld, Kolter: Certified adversarial robustness via randomized smoothing (ICML 2019), theorem 1 and CERTIFY; n_0 100,
n 100,000 and alpha 0.001 in its experiments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import beta, norm
from torch import Tensor, nn

from robustkd.contracts.random import SampleRng

ABSTAINS = -1
"""In the place of a class."""
_AT_ONCE = 1000
"""Noisy copies in one pass, at most."""


@dataclass(frozen=True)
class SmoothedCertificate:
    """One sample's class, or ``ABSTAINS``, and the radius in l2 within which it cannot change."""

    predicted: int
    radius: float


def lower_confidence_bound(successes: int, n: int, alpha: float) -> float:
    """The one-sided lower limit of a proportion at confidence 1 - alpha (Clopper and Pearson, 1934)."""
    return float(beta.ppf(alpha, successes, n - successes + 1)) if successes else 0.0


def certify(
    base: nn.Module, image: Tensor, index: int, *, sigma: float, select: int, draws: int, alpha: float, seed: int
) -> SmoothedCertificate:
    """The certificate of one image (*shape).

    Args:
        base: (B, *shape) -> (B, K), in evaluation mode.
        image: in [0, 1].
        index: its position in the data.
        sigma: of the noise.
        select: n_0.
        draws: n.
        alpha: the probability at which the certificate may be wrong.
        seed: of the noise.
    """
    first = _votes(base, image, index, sigma, select, seed, "select")
    guess = int(first.argmax())
    successes = int(_votes(base, image, index, sigma, draws, seed, "certify")[guess])
    least = lower_confidence_bound(successes, draws, alpha)
    if least <= 0.5:
        return SmoothedCertificate(ABSTAINS, 0.0)
    return SmoothedCertificate(guess, sigma * float(norm.ppf(least)))


@torch.no_grad()
def _votes(base: nn.Module, image: Tensor, index: int, sigma: float, count: int, seed: int, purpose: str) -> Tensor:
    """(K,) how many noisy copies are given each class."""
    total: Tensor | None = None
    for number, first in enumerate(range(0, count, _AT_ONCE)):
        size = min(_AT_ONCE, count - first)
        rng = SampleRng(seed, torch.tensor([index], device=image.device), f"smoothing/{purpose}/{number}")
        logits = base(image + sigma * rng.normal((size, *image.shape), dtype=image.dtype)[0])
        votes = torch.bincount(logits.argmax(1), minlength=logits.shape[1])
        total = votes if total is None else total + votes
    assert total is not None
    return total
