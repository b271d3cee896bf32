"""What a process for cells is told once: the campaign, its store, and how to work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from robustkd.campaigns.plan.cells import Cell
from robustkd.campaigns.store.store import KEPT_BYTES
from robustkd.contracts.target import Precision

Report = Callable[[Cell, int, Mapping[str, float]], None]
"""``report(cell, epoch, metrics)`` while a cell is running."""


@dataclass(frozen=True)
class Job:
    """What a child must know to work on the cells of a campaign; none of it enters a cell's identity but through ``text``."""

    text: str
    origin: str
    folder: str
    store: str
    device: str = "auto"
    precision: Precision = "full"
    threads: int = 1
    keep_bytes: int = KEPT_BYTES
    training_processes: int = 1
    batch_size: int | None = None
