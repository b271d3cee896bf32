"""OSD: a draft model is distilled on texts that it and its target write together, token by token.

    y_i from p_T with probability 1/2, else from p_S;    min_S  KL(p_T || p_S)  on y

The student is the draft of speculative decoding, which changes nothing of what its target answers: used so, it is as
safe as its target. Here it is asked itself. Its control is the same with ``source: {kind: data}``.

``source: {kind: speculative}`` is what the paper does while it serves: the student proposes, the target verifies, and the
student is trained where it was rejected. Its control is ``rejected: false``, all tokens of the same texts.

Source: Liu et al.: Online speculative decoding (ICML 2024), section 4; the mixture of tokens, and forward KL among
the divergences, as in the authors' distill/distill_trainer.py, and training where proposals were rejected, as others
describe it. They write each minibatch anew; a pool for 100 updates, steps and rate are ours.
"""

from __future__ import annotations

from pydantic import Field

from robustkd.defenses.text.distillation.engine.sources import SourceParams
from robustkd.defenses.text.distillation.lm_distil import LMDistil, LMDistilParams


class OSDParams(LMDistilParams):
    source: SourceParams = Field(
        default_factory=lambda: SourceParams(kind="mixed-tokens"), description="who writes the answers that are trained on"
    )


class OSD(LMDistil):
    """A student of texts that it and its teacher write together."""

    Params = OSDParams
    source = "Liu et al. 2023, arXiv:2310.07177"
