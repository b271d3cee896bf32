"""Probabilities of classes, and the logits that they stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Outputs: TypeAlias = Literal["logits", "probabilities", "log-probabilities"]


def outputs_of(values: Tensor) -> Outputs:
    """What (N, K) outputs are: probabilities lie in [0, 1] and sum to 1 (tolerance 1e-5); of log-probabilities logsumexp is 0 (1e-4)."""
    wide = values.detach().float().cpu().numpy().astype(np.float64)  # by NumPy: not every device has float64
    if not np.isfinite(wide).all():
        return "logits"  # of which some are masked, or which somebody else refuses
    if (wide >= 0).all() and (wide <= 1).all() and (abs(wide.sum(1) - 1) < 1e-5).all():
        return "probabilities"
    return "log-probabilities" if (abs(np.logaddexp.reduce(wide, 1)) < 1e-4).all() else "logits"


def log_of_probabilities(probabilities: Tensor) -> Tensor:
    """log p. One that float32 has rounded to 0 becomes that of the smallest normal number, about 1e-38: its logit is not known."""
    probabilities = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()
