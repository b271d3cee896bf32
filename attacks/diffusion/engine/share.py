"""Part of an attack's attempts, for one of several searches that have them in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from robustkd.contracts import Attempts, Request

if TYPE_CHECKING:
    from torch import Tensor


class Share(Attempts):
    """``budget`` attempts of those that are left of ``attempts``.

    Args:
        attempts: what this is a part of.
        budget: how many for each request, those that are counted as made already included.
        made: how many count as made already: 1 where the request as it is was judged before.
    """

    def __init__(self, attempts: Attempts, budget: int, made: int = 0) -> None:
        self.budget, self._all = budget, attempts
        self._before = attempts.used.clone() - made

    @property
    @override
    def broken(self) -> Tensor:  # type: ignore[override]
        return self._all.broken

    @property
    @override
    def used(self) -> Tensor:  # type: ignore[override]
        return self._all.used - self._before

    @property
    @override
    def answers(self) -> list[Any]:  # type: ignore[override]
        return self._all.answers

    @property
    @override
    def open(self) -> Tensor:
        rows = self._all.open
        return rows[self.used[rows] < self.budget]

    @override
    def __call__(self, rows: Tensor, asked: Sequence[Request]) -> Tensor:
        return self._all(rows, asked)

    @override
    def leave(self, rows: Tensor, why: str) -> None:
        self._all.leave(rows, why)

    @override
    def spend(self, rows: Tensor, forwards: int = 0, backwards: int = 0) -> None:
        self._all.spend(rows, forwards, backwards)
