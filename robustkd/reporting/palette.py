"""Colours that survive colour blindness, greyscale print and a dark page."""

from __future__ import annotations

from itertools import pairwise

SERIES = ("#0072b2", "#d55e00", "#009e73", "#b0528a", "#7a5c00", "#3394cc", "#555b66")
"""Okabe and Ito's set, its pale members darkened to stand on white paper."""

SERIES_DARK = ("#5cb3e8", "#f28c4f", "#3ecfa4", "#e19cc4", "#e6c35c", "#a5d8f6", "#b6bcc6")
"""The same hues for a dark page."""

DASHES = ("", "7 4", "2 4", "9 4 2 4")
"""One round through the colours per dash pattern: 28 lines stay apart, also without colour."""

HEAT = ((0.0, "#2c2a5c"), (0.25, "#31668e"), (0.5, "#2f9a8f"), (0.75, "#86c97f"), (1.0, "#e9f0b4"))
"""Dark to light, rising evenly in lightness, so that it reads in grey as well."""

INK = "#14202b"


def heat(share: float) -> str:
    """The colour of a share in [0, 1]."""
    share = min(max(share, 0.0), 1.0)
    for (low, start), (high, stop) in pairwise(HEAT):
        if share <= high:
            t = (share - low) / (high - low)
            mixed = (round(a + t * (b - a)) for a, b in zip(_rgb(start), _rgb(stop), strict=True))
            return "#{:02x}{:02x}{:02x}".format(*mixed)
    raise AssertionError("unreachable: the last stop is 1.0")


def readable_on(colour: str) -> str:
    """Black or white, whichever has more contrast on ``colour``: at least 4.5 on any (softer ink falls short in mid tones)."""
    return max(("#000000", "#ffffff"), key=lambda text: contrast(text, colour))


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in _rgb(colour))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
