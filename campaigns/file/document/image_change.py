"""The words of a ``threat`` block that say how an image changes, other than by a norm."""

from __future__ import annotations

from pydantic import BaseModel, Field

from robustkd.contracts import ColourBudget, FlowBudget, PerceptualBudget, SpatialBudget
from robustkd.contracts.image_changes import Change, ColourSpace, Padding
from robustkd.contracts.image_changes.perceptual import SELF


class ChangeWords(BaseModel):
    """What may stand in a ``threat`` block in the place of ``norm`` and ``eps``: one of four kinds of change."""

    rotation: float | None = Field(None, ge=0, le=180, description="of images: degrees that they may be rotated by, either way")
    translation: float | None = Field(
        None, ge=0, le=1, description="of images: share of width and height that they may be shifted by, either way"
    )
    padding: Padding = Field("zeros", description="with rotation and translation: what is seen outside the image")
    flow: float | None = Field(None, ge=0, description="of images: pixels that each pixel may be moved by, along each axis")
    colour: float | None = Field(
        None, ge=0, le=1, description="of images: how far a function of the colour may move each channel, in [0, 1]"
    )
    resolution: int = Field(16, ge=2, le=64, description="with colour: points of that function along each channel")
    colour_space: ColourSpace = Field("rgb", description="with colour: in which colours are moved, rgb or luv (CIELUV)")
    perceptual: float | None = Field(None, ge=0, description="of images: how far their features in a network may move (LPIPS)")
    metric: str = Field(SELF, description="with perceptual: the defense whose network it is, or self, the attacked one")
    layers: tuple[str, ...] = Field(
        (), description="with perceptual: submodules whose outputs are compared; default some of all"
    )

    def change(self) -> Change | None:
        """The budget; None where none of these words is given."""
        if self.rotation is not None or self.translation is not None:
            return SpatialBudget(self.rotation or 0.0, self.translation or 0.0, self.padding)
        if self.flow is not None:
            return FlowBudget(self.flow)
        if self.perceptual is not None:
            return PerceptualBudget(self.perceptual, self.metric, self.layers)
        return None if self.colour is None else ColourBudget(self.colour, self.resolution, self.colour_space)
