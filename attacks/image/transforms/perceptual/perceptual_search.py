"""Square Attack within a perceptual bound: random search, without a gradient of the logits or of the features.

In each step the pixels of one random window get one change of colour, and the image is brought to the bound on the line to the clean
one. It is kept where the margin grows.

Source: Andriushchenko et al.: Square attack (ECCV 2020), arXiv:1912.00049, for the search; the bound is ours.
"""

from __future__ import annotations

from pydantic import Field

from robustkd.attacks.image.black_box.square import Square, SquareParams


class PerceptualSearchParams(SquareParams):
    queries: int = Field(1000, ge=1, description="proposals for each sample in each restart; each is also brought to the bound")


class PerceptualSearch(Square):
    """Random search for images that look alike to a network."""

    Params = PerceptualSearchParams
    space = "perceptual"
    version = "1"
    source = "after Andriushchenko et al. 2020, arXiv:1912.00049"
