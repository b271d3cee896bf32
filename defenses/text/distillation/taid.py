"""TAID: the student's target moves from its own next token to its teacher's.

    min_S  J = KL( softmax((1 - t) * sg(z_S) + t * z_T)  ||  softmax(z_S) ),   t as in defenses/training/interpolation.py

Its control is ``lm-distil`` with the same settings, whose target stands still at the teacher (t = 1).

Source: Shing et al.: TAID: temporally adaptive interpolated distillation (ICLR 2025), equation 3 and algorithm 1;
t_start, t_end, alpha and beta are the authors'. They train for 5 epochs in batches of 8; steps, batch and rate are
ours. ``taid`` is the same for image classifiers.
"""

from __future__ import annotations

from pydantic import Field

from robustkd.defenses.text.distillation.lm_distil import LMDistil, LMDistilParams
from robustkd.defenses.training.interpolation import InterpolationParams


class LMTAIDParams(LMDistilParams):
    interpolation: InterpolationParams | None = Field(
        default_factory=InterpolationParams, description="how the target moves; left empty it stands still at the teacher"
    )


class LMTAID(LMDistil):
    """A student of a teacher that comes to meet it."""

    Params = LMTAIDParams
    source = "Shing et al. 2025, arXiv:2501.16937"
