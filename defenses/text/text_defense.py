"""What every defense of language models declares."""

from __future__ import annotations

from typing import ClassVar

from robustkd.contracts import Defense, Modality


class TextDefense(Defense):
    """A defense of language models."""

    modalities: ClassVar[tuple[Modality, ...]] = ("text",)
