"""SinKD: divergence token by token, and the Sinkhorn distance of the answers' tokens as sets.

    min_S  weight * KL(p_T || p_S) + weight_ce * CE + SD            (defenses/text/distillation/engine/token_sets.py)

Its control is ``lm-distil`` with the same weights: nothing but SD is taken out.

Source: Cui et al.: Sinkhorn distance minimization for knowledge distillation (COLING 2024), equations 6 to 10; the
weight of SD, eps and the rounds are the paper's. The weights of the other two, which the authors choose for each task
(0.8 to 1 and the rest), and sets of tokens in place of classified texts are ours. ``sinkd`` is the same for image
classifiers.
"""

from __future__ import annotations

from pydantic import Field

from robustkd.defenses.text.distillation.engine.token_sets import SinkhornParams
from robustkd.defenses.text.distillation.lm_distil import LMDistil, LMDistilParams


class LMSinKDParams(LMDistilParams):
    weight: float = Field(0.9, ge=0, description="of the divergence")
    weight_ce: float = Field(0.1, ge=0, description="of the cross entropy of the answers themselves")
    sinkhorn: SinkhornParams | None = Field(default_factory=SinkhornParams, description="the distance of sets of tokens")


class LMSinKD(LMDistil):
    """A student whose answers' tokens are moved onto its teacher's."""

    Params = LMSinKDParams
    source = "Cui et al. 2024, arXiv:2402.17110"
