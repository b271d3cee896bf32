"""What guards around models that draw share."""

from __future__ import annotations

from typing import ClassVar

from robustkd.contracts import Modality
from robustkd.defenses.text.guards.guard import Guard


class DrawingGuard(Guard):
    """A guard around another defense's model that draws. A subclass names its ``target``."""

    modalities: ClassVar[tuple[Modality, ...]] = ("text-to-image",)
    version = "1"  # what changed of guards of texts is not asked of models that draw
