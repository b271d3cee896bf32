"""The worst case per sample: what robust accuracy is the mean of."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def worst_case(held: Iterable[np.ndarray]) -> np.ndarray:
    """What the attacks leave of each sample: the least that one of them leaves.

    Args:
        held: of each attack, (N,) bool, the samples that are classified rightly before and after it; or (N,) in [0, 1], on what
            share of the draws they are, if the target draws random numbers.

    Returns:
        (N,) bool, the samples that no attack broke; or (N,) shares.

    Raises:
        ValueError: there is no attack, or the arrays are not of one length.
    """
    known = list(held)
    if not known:
        raise ValueError("the worst case over no attacks is not defined")
    least: np.ndarray = np.minimum.reduce(known)
    return least
