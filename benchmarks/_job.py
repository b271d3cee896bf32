"""What a process of the benchmarks is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Job:
    """One contender's turn.

    Attributes:
        duel: which attack, a key of ``_duels.DUELS``.
        contender: ``robustkd`` or a peer.
        network: a name that ``_networks.load`` knows.
        images: how many of its test images.
        eps: the budget of a fixed-budget attack; what is asked of a minimum-norm one does not depend on it.
        budget: steps, restarts, .. : the same numbers for every contender.
        threads: CPU threads.
        device: where the network is.
        seed: of a contender that takes one, of torch's own generator, from which the others draw, and of how the images are moved.
    """

    duel: str
    contender: str
    network: str
    images: int
    eps: float
    budget: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    device: str = "cpu"
    seed: int = 0
