"""MiniLM: a student that is shown its teacher's last attention, and none of its answers.

    min_S  mean over heads and tokens of  KL(A_T || A_S) + KL(R_T || R_S)          (defenses/text/distillation/engine/relations.py)

No output is compared, so a fresh student cannot speak: it begins as a model that can (``start``), or is tuned
afterwards. Whether refusing comes along with the attention alone is the question. Its control is the model that it
begins as.

Source: Wang et al.: MiniLM: deep self-attention distillation for task-agnostic compression of pre-trained
transformers (NeurIPS 2020), its abstract and others' descriptions. Theirs is trained from scratch for 400,000 steps
in batches of 1,024 at a rate of 5e-4 and then tuned for each task; steps and rate here are ours.
"""

from __future__ import annotations

from pydantic import Field

from robustkd.defenses.text.distillation.lm_distil import LMDistil, LMDistilParams


class MiniLMParams(LMDistilParams):
    relations: float = Field(1.0, ge=0, description="weight of the relations of the last attention")
    weight: float = Field(0.0, ge=0, description="of the divergence")


class MiniLM(LMDistil):
    """A student of its teacher's last attention."""

    Params = MiniLMParams
    source = "Wang et al. 2020, arXiv:2002.10957"
