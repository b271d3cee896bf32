"""A deterministic order of samples in which every prefix has the classes in their proportions."""

from __future__ import annotations

import numpy as np


def stratified_order(labels: np.ndarray, *key: int) -> np.ndarray:
    """A random permutation of the samples, stratified at every length.

    The j-th of a class's n samples (they are shuffled first) is placed at ``(j + u) / n`` with u uniform in [0, 1): a
    prefix that ends at t holds t n of them, give or take one. With classes of equal size the counts of any prefix
    differ by at most one. Taking the first m of the order is therefore a stratified sample of any size m, and a larger
    sample contains the smaller one.

    Args:
        labels: (N,) integers.
        key: non-negative integers that seed the order.

    Returns:
        (N,) int64, a permutation of 0..N-1.
    """
    # Raw bits and sorting: NumPy keeps the bits of a generator stable over its releases, but not the methods on them.
    bits = np.random.PCG64(np.random.SeedSequence(key)).random_raw(2 * len(labels)).reshape(2, -1)
    by_class = np.lexsort((bits[0], labels))
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(starts, counts)
    uniform = (bits[1] >> np.uint64(11)) * 2.0**-53
    place = (rank + uniform) / np.repeat(counts, counts)
    return by_class[np.argsort(place, kind="stable")].astype(np.int64)
