"""The greatest value of a linear function over a piece of a ReLU network, as a mixed-integer program.

    max  c(x, p)    over the pixels x, the outputs p of free ReLUs and their sides s in {0, 1}, under the piece's inequalities

The solver is HiGHS, by SciPy. Where its time is over it still knows a bound that no point exceeds.

Source: Tjeng, Xiao, Tedrake: Evaluating robustness of neural networks with mixed integer programming (ICLR 2019).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.certification.mixed_integer.relu_network import LinearPiece


_INFEASIBLE = 2  # as SciPy numbers it


@dataclass(frozen=True)
class Solution:
    """How far the solver came.

    Attributes:
        pixels: (D,) the best point; None where it found none.
        bound: no point of the piece has a greater value; infinite where the solver knows nothing, -infinite where there is no point.
    """

    pixels: Tensor | None
    bound: float


@contextmanager
def _silent() -> Iterator[None]:
    """Send to nowhere what the solver prints from its own code, which none of its options turns off."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # the process has no standard output
        yield
        return
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        with suppress(OSError):
            os.close(kept)


def maximum(piece: LinearPiece, objective: Tensor, seconds: float) -> Solution:
    """Where a function (1 + D + F,) is greatest over a piece of a network, as far as the solver came in that time."""
    from scipy import sparse  # late: a tenth of a second
    from scipy.optimize import Bounds, LinearConstraint, milp

    pixels, free = len(piece.low), len(piece.free)
    width = pixels + 2 * free  # the pixels, the free outputs, their sides
    tops = np.array([upper for _, _, upper in piece.free])
    rows: list[np.ndarray] = []
    least: list[float] = []

    def at_least(function: Tensor, sign: float, bound: float, others: dict[int, float]) -> None:
        """``sign * function + others >= bound``, with the function's constant on the right."""
        row = np.zeros(width)
        row[: len(function) - 1] = sign * function[1:].numpy()
        for position, coefficient in others.items():
            row[position] += coefficient
        rows.append(row)
        least.append(bound - sign * float(function[0]))

    for function in piece.positive:
        at_least(function, 1.0, 0.0, {})
    for number, (function, lower, upper) in enumerate(piece.free):
        output, side = pixels + number, pixels + free + number
        at_least(function, -1.0, 0.0, {output: 1.0})  # p >= z
        at_least(function, 1.0, lower, {output: -1.0, side: lower})  # p <= z - l (1 - s)
        at_least(function[:1] * 0, 1.0, 0.0, {output: -1.0, side: upper})  # p <= u s
    cost = np.zeros(width)
    cost[: len(objective) - 1] = -objective[1:].numpy()
    low = np.concatenate([piece.low.numpy(), np.zeros(2 * free)])
    high = np.concatenate([piece.high.numpy(), tops, np.ones(free)])
    with _silent():
        found = milp(
            cost,
            constraints=LinearConstraint(sparse.csr_array(np.array(rows)), np.array(least), np.inf) if rows else (),
            bounds=Bounds(low, high),
            integrality=np.concatenate([np.zeros(pixels + free), np.ones(free)]),
            options={"time_limit": seconds},
        )
    if found.status == _INFEASIBLE:
        return Solution(None, -np.inf)
    reached: float | None = found.mip_dual_bound if free else (found.fun if found.status == 0 else None)
    pixels_found = None if found.x is None else torch.from_numpy(found.x[:pixels])
    return Solution(pixels_found, np.inf if reached is None else float(objective[0]) - reached)
