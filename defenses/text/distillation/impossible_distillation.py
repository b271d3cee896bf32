"""Impossible Distillation: a model learns from answers that it and a weak teacher wrote, of which critics keep the good
ones.

    y from p_T or p_S;  kept where it is new, of the wanted length, and likely enough to the critic;    min_S  CE(y | x)

Whether filtered data of one's own lose or sharpen a refusal over rounds is the question: ``source: {every: ..}``
divided into ``steps`` is the number of rounds. Its control is ``filters: null``.

Source: Jung et al.: Impossible distillation (NAACL 2024), by its abstract: pairs of paraphrases from a weak model,
filtered by entailment both ways, length, dissimilarity and diversity, then distilled again from the student's own.
Here answers are filtered, not paraphrases, and the critic is the teacher's likelihood in place of entailment: that,
its bound and the shares are ours.
"""

from __future__ import annotations

from pydantic import Field

from robustkd.defenses.text.distillation.engine.sources import FilterParams, SourceParams
from robustkd.defenses.text.distillation.lm_distil import LMDistil, LMDistilParams


class ImpossibleDistillationParams(LMDistilParams):
    weight: float = Field(0.0, ge=0, description="of the divergence")
    weight_ce: float = Field(1.0, ge=0, description="of the cross entropy of the answers themselves")
    source: SourceParams = Field(
        default_factory=lambda: SourceParams(kind="mixed-requests", filters=FilterParams(likelihood=-1.0)),
        description="who writes the answers that are trained on, and which are kept",
    )


class ImpossibleDistillation(LMDistil):
    """A student of answers that critics kept."""

    Params = ImpossibleDistillationParams
    source = "Jung et al. 2023, arXiv:2305.16635"
