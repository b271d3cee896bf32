"""Robust accuracy from both sides: what is certified, and what the attacks leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robustkd.contracts.analysis import Certificate
from robustkd.scoring.intervals import wilson


@dataclass(frozen=True)
class Bracket:
    """Robust accuracy lies between two shares of the same n samples.

    Attributes:
        certified: the share that is proved to be robust.
        ci_low, ci_high: its 95 % interval over the choice of the samples.
        attacked: the share that neither an attack nor an analysis is known to break.
        contradicted: how many samples are certified and broken all the same; one of the two is wrong. A certificate that rests on draws is
            about a vote of infinitely many: that an attack breaks a vote of a few on some of its draws, and not on all, is chance.
        open: how many are neither certified nor broken.
        analyses: by whose certificates.
        error: the probability at which the certificate of a sample may be wrong; 0 of proofs.
        passes_on_certified: forward and backward passes that the attacks spent on certified samples, in vain if the certificates
            are right.
        passes_saved: those that they would have spent on certified samples that they left alone, as many on each as on the certified
            ones that they did attack, on average.
    """

    n: int
    certified: float
    ci_low: float
    ci_high: float
    attacked: float
    contradicted: int
    open: int
    analyses: list[str]
    error: float = 0.0
    passes_on_certified: int = 0
    passes_saved: int = 0

    @property
    def exact(self) -> bool:
        """Whether both ends meet: every sample is decided by a proof, and none twice."""
        return self.open == 0 and self.contradicted == 0 and self.error == 0


def bracket(certificates: Mapping[str, Certificate], held: np.ndarray, passes: Sequence[np.ndarray]) -> Bracket | None:
    """The bracket of a defense; None without a certificate.

    Args:
        certificates: by the analyses' names; each is of the first samples.
        held: (N,) what the attacks leave of each sample, in [0, 1].
        passes: (N,) of each attack, what it spent on a sample.
    """
    if not certificates:
        return None
    n = len(held)
    robust, proved, broken = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool), held <= 0
    for certificate in certificates.values():
        robust[: len(certificate.robust)] |= certificate.robust
        if not certificate.error:
            proved[: len(certificate.robust)] |= certificate.robust
        broken[: len(certificate.broken)] |= certificate.broken
    count = int(robust.sum())
    return Bracket(
        n=n,
        certified=count / n,
        ci_low=(interval := wilson(count, n))[0],
        ci_high=interval[1],
        attacked=float((held * ~broken).mean()),
        contradicted=int(((robust & broken) | (proved & (held < 1))).sum()),
        open=int((~robust & ~broken).sum()),
        analyses=list(certificates),
        error=max(certificate.error for certificate in certificates.values()),
        passes_on_certified=sum(int(spent[robust].sum()) for spent in passes),
        passes_saved=round(sum(_saved(spent[robust]) for spent in passes)),
    )


def _saved(spent: np.ndarray) -> float:
    """What an attack would have spent on the certified samples on which it spent nothing."""
    attacked = spent[spent > 0]
    return float((len(spent) - len(attacked)) * attacked.mean()) if len(attacked) else 0.0
