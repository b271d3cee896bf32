"""Random subset: the control of every condenser. Images drawn at random, as many of each class.

    S = n images of each class, without replacement

With ``share: f`` and a teacher in the recipe it is the study of Knowledge distillation for data pruning: a student of a teacher that
was trained on all data sees the share f of them, and the weight of the teacher's answer (``alpha`` of ``kd``) rises as f falls. With
``rslad`` and a robust teacher the same sweep says how little data robust distillation needs.

Control: all data (``share: 1``).

Source: no paper: the control. Ben-Baruch et al.: Distilling the knowledge in data pruning (2024), arXiv:2403.07854, for the study; read in
the abstract only, so that no grid of weights is claimed.
"""

from __future__ import annotations

from typing import ClassVar

from robustkd.condensers.engine.rows import SelectionParams, random_rows
from robustkd.contracts import Arrays, Condenser, FitContext, Params


class RandomSubsetParams(SelectionParams):
    """How many."""


class RandomSubset(Condenser):
    """Images of each class drawn at random: the control of every condenser."""

    Params: ClassVar[type[Params]] = RandomSubsetParams
    source = "no paper: the control"

    def condense(self, context: FitContext[Arrays]) -> Arrays:
        """Draw the rows; images stay in the type that they have."""
        return context.train.select(random_rows(context, self.params)).kept()
