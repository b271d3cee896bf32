"""Condensed data: a small training set, chosen or made by a condenser, as a cell of its own.

    S = condense(D),     |S| << |D|

It is stored once and used by any number of trainings (``train-on-condensed``). By itself it answers as the classifier by the nearest of
its images, whose robust accuracy is no claim of anybody's: leave it out of the attacks in ``matrix``.

Control: the same number of images drawn at random (``random-subset``), and the same recipe on all data.

Source: this package; each condenser names its own.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from robustkd.contracts import Arrays, DataError, Defense, FitContext, Params, Target
from robustkd.contracts.random import preserved_rng
from robustkd.targets.condensed import CondensedTarget, CondenserSpec


class CondensedDataParams(Params):
    """By what the data are condensed."""

    condenser: CondenserSpec = Field(
        description="a kind (robustkd list condensers) and its parameters", examples=["random-subset"]
    )


class CondensedData(Defense):
    """A small training set that stands for the campaign's."""

    Params = CondensedDataParams
    source = "this package; each condenser names its own"

    def __init__(self, params: Any = None) -> None:
        super().__init__(params)
        condenser = self.params.condenser.make()
        self.uses_threat = condenser.uses_threat

    def fit(self, context: FitContext[Arrays]) -> Target:
        """Condense the training data.

        Raises:
            DataError: the condenser made images or labels that are out of their ranges.
        """
        condenser = self.params.condenser.make()
        with preserved_rng(context.device):
            arrays = condenser.condense(context)
        checked = arrays.validated(f"made by {condenser.name}", context.num_classes)
        if checked.sample_shape != tuple(context.input_shape):
            raise DataError(
                f"condenser '{condenser.name}' made images of shape {checked.sample_shape}, the data have {context.input_shape}",
                fix="make images of the data's shape",
            )
        target = CondensedTarget(checked, num_classes=context.num_classes).to(context.device)
        target.module.eval()
        return target
