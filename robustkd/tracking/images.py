"""The attacked samples of one cell as one picture: clean | what was added | adversarial, or what was drawn for a request before and
under attack, with a caption under each row.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from robustkd.reporting.formatting import shortened
from robustkd.reporting.gallery import Item, pixels
from robustkd.reporting.transcripts import PromptItem

if TYPE_CHECKING:
    from PIL.Image import Image


MAX_IMAGES = 16
SIDE = 112
"""Smaller images are enlarged to about this height, pixel by pixel."""
GAP, CAPTION, COLUMNS = 6, 20, 2
LINE, LINE_HEIGHT, LONGEST_PROMPT = 36, 15, 140


def save_sheet(items: Sequence[Item], path: Path) -> bool:
    """Write at most ``MAX_IMAGES`` samples as one PNG, two a row; False when none of them is to be seen."""
    from PIL import Image

    strips = [_strip(*shown) for item in items[:MAX_IMAGES] if (shown := _panels(item))]
    if not strips:
        return False
    columns = min(COLUMNS, len(strips))
    width, height = max(strip.width for strip in strips), max(strip.height for strip in strips)
    rows = -(-len(strips) // columns)
    sheet = Image.new("RGB", (columns * (width + 3 * GAP) - 3 * GAP, rows * (height + GAP) - GAP), "white")
    for place, strip in enumerate(strips):
        row, column = divmod(place, columns)
        sheet.paste(strip, (column * (width + 3 * GAP), row * (height + GAP)))
    sheet.save(path)
    return True


def _panels(item: Item) -> tuple[list[np.ndarray], list[str]] | None:
    """The pictures of one sample, side by side, and the lines below them; None for a text."""
    if isinstance(item, PromptItem):
        if item.before is None or item.after is None:
            return None
        asked = textwrap.wrap(shortened(item.prompt, LONGEST_PROMPT), LINE)
        return [item.before, item.after], [f"{item.label}: {item.outcome}", *asked]
    moved = f"{item.before} > {item.after}" if item.before != item.after else f"stays {item.after}"
    caption = f"label {item.label}: {moved}, {item.outcome}   {item.norm} {item.distance:.3g}   (x{item.factor})"
    return [item.clean, item.perturbation(), item.adversarial], [caption]


def _strip(images: Sequence[np.ndarray], lines: Sequence[str]) -> Image:
    from PIL import Image, ImageDraw, ImageFont

    panels = [pixels(image) for image in images]
    scale = max(1, round(SIDE / panels[0].shape[0]))
    panels = [np.kron(panel, np.ones((scale, scale, 1), np.uint8)) for panel in panels]
    height, width = panels[0].shape[:2]
    strip = Image.new("RGB", (len(panels) * (width + GAP) - GAP, height + CAPTION + LINE_HEIGHT * (len(lines) - 1)), "white")
    for place, panel in enumerate(panels):
        strip.paste(Image.fromarray(panel), (place * (width + GAP), 0))
    for place, text in enumerate(lines):
        ImageDraw.Draw(strip).text((0, height + 3 + LINE_HEIGHT * place), text, "black", ImageFont.load_default(size=12))
    return strip
