"""Clean and robust accuracy as one number: the two that robust distillation reports."""

from __future__ import annotations


def w_robust(clean: float, robust: float) -> float:
    """The mean of both. Much of one makes up for little of the other, so never read it alone.

    Source: Zhao et al.: Enhanced accuracy and robustness via multi-teacher adversarial distillation (ECCV 2022), section 4.
    """
    return (clean + robust) / 2


def nrr(clean: float, robust: float) -> float:
    """The harmonic mean of both (natural robustness ratio): near 0 when either is.

    Source: Gowda et al.: Conserve-update-revise to cure generalization and robustness trade-off (ICLR 2024).
    """
    return 2 * clean * robust / (clean + robust) if clean + robust > 0 else 0.0
