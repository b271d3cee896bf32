"""Hyper-SD: consistency within segments that grow until there is one (Ren et al. 2024, section 3.1).

    ||f_G(z_t -> e_k(t)) - sg(f_G(z_s -> e_k(t)))||^2,     e_k(t) the end of t's segment, where the levels are cut into k segments
    k = 8, 4, 2, 1, each for an equal part of the steps

``segments: [1]`` is ``consistency-distillation``, its control. Of the paper the abstract was read. Left out, as reduced: the
adversarial loss, the feedback of people, and the last distillation by scores; the numbers of levels and steps are ours.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from robustkd.defenses.diffusion.one_step.consistency.distillation import ConsistencyDistillation, ConsistencyParams


class HyperSDParams(ConsistencyParams):
    segments: tuple[int, ...] = Field((8, 4, 2, 1), min_length=1, description="how many there are, one stage after the other")

    @model_validator(mode="after")
    def _whole_segments(self) -> HyperSDParams:
        if bad := [count for count in self.segments if count < 1 or self.levels % count]:
            raise ValueError(f"{self.levels} levels cannot be cut into {bad[0]} equal segments")
        return self


class HyperSD(ConsistencyDistillation):
    """Consistency distillation in segments, the last of which are all levels."""

    Params = HyperSDParams
    source = "Ren et al., Hyper-SD: trajectory segmented consistency model for efficient image synthesis, NeurIPS 2024, arXiv:2404.13686"

    def segments(self, step: int) -> int:
        """Those of the stage that a step belongs to."""
        p = self.params
        number: int = p.segments[min(step * len(p.segments) // p.steps, len(p.segments) - 1)]
        return number
