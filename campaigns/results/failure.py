"""Why a cell has no result."""

from __future__ import annotations

from dataclasses import dataclass

from robustkd.scoring.results import CellStatus


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result."""

    status: CellStatus
    error: str


PENDING = Failure("pending", "not run yet")
NO_HEADLINE = Failure("failed", "no attack under the campaign's threat model")
