"""Square Attack on a function of the colour: random search, without a gradient.

In each step the points of one window of the grid over the colour cube get one move, eps or -eps in each channel, and it is kept where
the margin grows.

Source: Andriushchenko et al.: Square attack (ECCV 2020), arXiv:1912.00049, for the search; that it is on colours is ours.
"""

from __future__ import annotations

from robustkd.attacks.image.black_box.square import Square


class ColourSearch(Square):
    """Random search over functions of the colour."""

    space = "colour"
    version = "1"
    source = "after Andriushchenko et al. 2020, arXiv:1912.00049"
