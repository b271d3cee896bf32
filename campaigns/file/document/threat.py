"""The ``threat`` block: the budget that an attack is judged under."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from robustkd.campaigns.file.document.image_change import ChangeWords
from robustkd.contracts import Modality, ThreatModel, UsageError
from robustkd.contracts.params import CampaignPath, Settings
from robustkd.contracts.region import Region, region_of
from robustkd.contracts.threat import Goal, Norm, default_eps, norm_named
from robustkd.evaluation.modality import evaluation_of


class WhereSpec(Settings):
    """The ``where`` of a threat: one of ``patch`` (with ``place``), ``channels`` and ``mask``."""

    patch: int | float | tuple[int, int] | None = Field(
        None, description="a rectangle: its side in pixels, [height, width], or below 1 the share of the image"
    )
    place: Literal["worst", "random"] | tuple[int, int] | None = Field(
        None,
        description="of the patch: worst (the attacker chooses; the default), random (drawn for each sample), or [top, left]",
    )
    channels: tuple[int, ...] | None = Field(None, description="the channels that may change, counted from 0")
    mask: CampaignPath | None = Field(None, description="a .png, .npy or .npz file; pixels that are not 0 may change")

    @cached_property
    def region(self) -> Region:
        """The region that the block describes."""
        return region_of({key: value for key, value in self if value is not None})

    @model_validator(mode="after")
    def _one(self) -> WhereSpec:
        try:
            _ = self.region
        except UsageError as error:
            raise ValueError(str(error)) from None
        return self


class ThreatSpec(Settings, ChangeWords):
    """The ``threat`` block: a budget in pixels or of another change of an image, or, of a model that is asked, in attempts."""

    norm: Annotated[Norm, BeforeValidator(norm_named)] = "linf"
    eps: float | None = Field(None, ge=0, description="of images: budget in pixel units of [0, 1]")
    goal: Goal = "untargeted"
    curve: tuple[Annotated[float, Field(ge=0)], ...] = Field((), description="more eps, for the accuracy curve")
    attempts: int | None = Field(None, ge=1, description="of prompts: how many answers to each request may be judged")
    where: WhereSpec | None = Field(None, description="of images: the only pixels that may change")

    @model_validator(mode="after")
    def _free_in_a_patch(self) -> ThreatSpec:
        """The pixels of a patch are free unless eps says otherwise."""
        eps = None if self.where is None or self.eps is not None else default_eps(self.norm, self.where.region)
        return self if eps is None else self.model_copy(update={"eps": eps})

    def model(self) -> ThreatModel:
        """The threat model that the block describes."""
        if self.attempts is not None:
            return ThreatModel.by_prompt(self.attempts)
        if (change := self.change()) is not None:
            return ThreatModel(budget=change, goal=self.goal)
        region = None if self.where is None else self.where.region
        return ThreatModel(norm=self.norm, eps=self.eps or 0.0, goal=self.goal, where=region)

    def divided(self, scale: float) -> ThreatSpec:
        """The budget where all inputs are divided by ``scale``; a number of features, l0, stays."""
        if self.eps is None or self.norm == "l0":
            return self
        return self.model_copy(update={"eps": self.eps / scale, "curve": tuple(point / scale for point in self.curve)})

    def larger(self) -> ThreatModel:
        """A threat model of a larger budget: an attack that is judged under the same one with it has no budget to set."""
        if self.attempts is not None:
            return ThreatModel.by_prompt(self.attempts + 1)
        threat = self.model()
        return threat.with_eps(threat.eps + 1)

    def problem(self, modality: Modality) -> tuple[str, str] | None:
        """What is wrong with it for such data, and the fix."""
        given = {key for key in self.model_fields_set if getattr(self, key) is not None}
        return evaluation_of(modality).threat_problem(given)
