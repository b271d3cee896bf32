"""DDK: domains in which the student lags behind its teacher are drawn more often.

    min_S  CE + gamma * KL(p_T || p_S)   on requests of role i with probability P_i      (defenses/text/distillation/engine/domains.py)

Whether drawing by gaps over-samples what a student refuses less is the question. Its control is ``domains: {uniform:
1}``.

Source: Liu et al.: DDK: distilling domain knowledge for efficient large language models (NeurIPS 2024), as its
abstract and others describe it; no code of the authors was found. gamma = 1, the uniform share, steps and rate are
ours, and so is that domains are roles.
"""

from __future__ import annotations

from pydantic import Field

from robustkd.defenses.text.distillation.engine.domains import DomainParams
from robustkd.defenses.text.distillation.lm_distil import LMDistil, LMDistilParams


class DDKParams(LMDistilParams):
    weight_ce: float = Field(1.0, ge=0, description="of the cross entropy of the answers themselves")
    domains: DomainParams | None = Field(default_factory=DomainParams, description="how often each role's requests are drawn")


class DDK(LMDistil):
    """A student that sees most of what it lags behind in."""

    Params = DDKParams
    source = "Liu et al. 2024, arXiv:2407.16154"
