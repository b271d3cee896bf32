"""What a process of the benchmarks is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Job:
    """One run of an implementation.

    Attributes:
        comparison: which attack, a key of ``_comparisons.COMPARISONS``.
        implementation: ``robustkd`` or a peer.
        network: a name that ``_networks.load`` knows.
        images: how many of its test images.
        first: the number of the first of them, counted from 0.
        eps: the budget of a fixed-budget attack; what is asked of a minimum-norm one does not depend on it.
        budget: steps, restarts, .. : the same numbers for every implementation.
        threads: CPU threads.
        device: where the network is.
        seed: of an implementation that takes one, of torch's own generator, from which the others draw, and of how the images are moved.
    """

    comparison: str
    implementation: str
    network: str
    images: int
    eps: float
    budget: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    device: str = "cpu"
    seed: int = 0
    first: int = 0
