"""The condenser contract: what makes a small training set that stands for a large one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from robustkd.contracts.data import Arrays, Modality
from robustkd.contracts.defense import FitContext
from robustkd.contracts.plugin import Plugin


class Condenser(Plugin, ABC):
    """A condenser: parameters, and ``condense``. It chooses images (a coreset) or makes them (distilled data).

    Its product is a cell of its own: the defense ``condensed-data`` stores it, and any recipe is trained on it by ``train-on-condensed``.
    Parameters may refer to defenses of the campaign (``TargetRef``), whose finished targets ``context.target`` hands over.

    Attributes:
        modalities: what it condenses.
        uses_threat: whether ``condense`` looks at ``context.threat``: then another threat model means another set.
        version: raise it when its images or labels change.
    """

    modalities: ClassVar[tuple[Modality, ...]] = ("images",)
    uses_threat: bool = False

    @abstractmethod
    def condense(self, context: FitContext[Arrays]) -> Arrays:
        """Return the small set, made from ``context.train`` alone; the validation data are left for whoever trains on it.

        Everything random comes from ``context.seed``. What takes long keeps its state in ``context.checkpoints``.

        Returns:
            (M, C, H, W) images, uint8 or float32 in [0, 1], and their labels; ``SoftArrays`` where each image has a probability for each
            class.
        """
