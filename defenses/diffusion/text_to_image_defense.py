"""What every defense of text-to-image models declares."""

from __future__ import annotations

from typing import ClassVar

from robustkd.contracts import Defense, Modality


class TextToImageDefense(Defense):
    """A defense of text-to-image models."""

    modalities: ClassVar[tuple[Modality, ...]] = ("text-to-image",)
