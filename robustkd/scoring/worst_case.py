"""The worst case per sample: what robust accuracy is the share of."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def worst_case(standings: Iterable[np.ndarray]) -> np.ndarray:
    """The samples that no attack broke.

    Args:
        standings: of each attack, (N,) bool: the samples that are classified rightly before and after it.

    Returns:
        (N,) bool.

    Raises:
        ValueError: there is no attack, or the arrays are not of one length.
    """
    known = list(standings)
    if not known:
        raise ValueError("the worst case over no attacks is not defined")
    standing: np.ndarray = np.logical_and.reduce(known)
    return standing
