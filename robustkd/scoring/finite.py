"""Outputs that are no numbers: they say nothing of a model, and count neither as broken nor as withstanding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from robustkd.contracts import TargetError
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def require_finite(values: Tensor | np.ndarray, what: str, of: str = "requests") -> None:
    """Every row of ``values``, (N, ..), is finite.

    Args:
        what: they are, and of which model: the subject of the error's sentence, in the plural.
        of: what the rows are.

    Raises:
        TargetError: some are not; it says of how many rows.
    """
    rows = torch.as_tensor(values).reshape(len(values), -1)
    if rows.is_floating_point() and math.isfinite(rows.sum().item()):
        return  # of large values the sum may be infinite where none of them is
    broken = int((~torch.isfinite(rows).all(1)).sum())
    if broken:
        raise TargetError(
            f"{what} are NaN or infinite for {broken} of {len(rows)} {of}",
            fix="see that its weights are finite, and that its precision is wide enough (float16 overflows above 65,504)",
        )
