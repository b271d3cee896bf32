"""Square Attack on the flow: random search for displacements, without a gradient.

In each step the pixels of one random window get one displacement, eps or -eps along each axis, and it is kept where the margin
grows. The flow of a window is constant, so a window moves as a whole.

Source: Andriushchenko et al.: Square attack (ECCV 2020), arXiv:1912.00049, for the search; that it is on a flow is ours.
"""

from __future__ import annotations

from robustkd.attacks.image.black_box.square import Square


class FlowSearch(Square):
    """Random search over flows."""

    space = "flow"
    version = "1"
    source = "after Andriushchenko et al. 2020, arXiv:1912.00049"
