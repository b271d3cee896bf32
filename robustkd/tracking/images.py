"""The attacked samples of one cell as one picture: clean | what was added | adversarial, a caption under each row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from robustkd.report.gallery import pixels

if TYPE_CHECKING:
    from PIL.Image import Image

    from robustkd.report import GalleryItem

MAX_IMAGES = 16
SIDE = 112
"""Smaller images are enlarged to about this height, pixel by pixel."""
GAP, CAPTION, COLUMNS = 6, 20, 2


def save_sheet(items: Sequence[GalleryItem], path: Path) -> None:
    """Write at most ``MAX_IMAGES`` samples as one PNG, two a row."""
    from PIL import Image

    strips = [_strip(item) for item in items[:MAX_IMAGES]]
    columns = min(COLUMNS, len(strips))
    width, height = max(strip.width for strip in strips), max(strip.height for strip in strips)
    rows = -(-len(strips) // columns)
    sheet = Image.new("RGB", (columns * (width + 3 * GAP) - 3 * GAP, rows * (height + GAP) - GAP), "white")
    for place, strip in enumerate(strips):
        row, column = divmod(place, columns)
        sheet.paste(strip, (column * (width + 3 * GAP), row * (height + GAP)))
    sheet.save(path)


def _strip(item: GalleryItem) -> Image:
    from PIL import Image, ImageDraw, ImageFont

    panels = [pixels(image) for image in (item.clean, item.perturbation(), item.adversarial)]
    scale = max(1, round(SIDE / panels[0].shape[0]))
    panels = [np.kron(panel, np.ones((scale, scale, 1), np.uint8)) for panel in panels]
    height, width = panels[0].shape[:2]
    strip = Image.new("RGB", (3 * width + 2 * GAP, height + CAPTION), "white")
    for place, panel in enumerate(panels):
        strip.paste(Image.fromarray(panel), (place * (width + GAP), 0))
    moved = f"{item.before} > {item.after}" if item.before != item.after else f"stays {item.after}"
    caption = f"label {item.label}: {moved}, {item.outcome}   {item.norm} {item.distance:.3g}   (x{item.factor})"
    ImageDraw.Draw(strip).text((0, height + 3), caption, "black", ImageFont.load_default(size=12))
    return strip
