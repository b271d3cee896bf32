"""Consistency distillation: all that is seen along one drawing of the teacher is to be the same picture (Song et al. 2023, algorithm 2).

    z_s = the teacher's guided step from z_t to the next level s          G: ||f_G(z_t -> e | c) - sg(f_G(z_s -> e | c))||^2

f_G(z_t -> e) is the DDIM step from t to the level e by the clean picture that G sees in z_t, and z_e itself where t is e: that is the
boundary, without further constants. Here e is the end of all levels, no noise at all, and G is asked for the clean picture alone.

The drawings are the teacher's own (``states: drawn``), so that no picture of the data is seen; ``states: data`` takes noised
pictures of the data, as the authors do. Of an erased teacher these are other things: the data show what was erased. Without a
teacher it is consistency training (``ict``), its control. Ours: no moving average as the target (iCT has shown that it is not
needed), the squared error, the levels (those of the teacher's drawing in ``levels`` steps) and the rates.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic import Field

from robustkd.contracts import FitContext, Prompts
from robustkd.defenses.diffusion.captioned_pictures import CaptionedPictures
from robustkd.defenses.diffusion.erasing import partially_denoised
from robustkd.defenses.diffusion.one_step.drawing import caption_draws, ddim, guided, in_one_step, in_steps, normal
from robustkd.defenses.diffusion.one_step.score_distillation import DistillationParams
from robustkd.defenses.diffusion.text_to_image_defense import TextToImageDefense
from robustkd.defenses.training.steps import StepCounter, train_steps
from robustkd.lazy import torch
from robustkd.targets.text_encoders import Conditioning
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor


class ConsistencyParams(DistillationParams):
    """Parameters of every consistency distillation."""

    levels: int = Field(8, ge=1, description="steps of the teacher's drawing, between which the generator is to be consistent")
    guidance: float = Field(3.0, ge=1, description="of the teacher")
    states: Literal["drawn", "data"] = Field("drawn", description="noised pictures: the teacher's drawings, or the data's")


class ConsistencyDistillation(TextToImageDefense):
    """Distil the model into a generator that sees the same picture all along a drawing."""

    Params = ConsistencyParams
    source = "Song et al., Consistency models, ICML 2023, arXiv:2303.01469"

    def fit(self, context: FitContext[Prompts]) -> TextToImageTarget:
        """Train the generator.

        Raises:
            UsageError: the base draws nothing.
            DataError: ``states: data``, and the training captions have no images.
        """
        p, counter = self.params, StepCounter()
        teacher = context.target(p.base, TextToImageTarget).to(context.device)
        solver, generator = in_steps(teacher, p.levels, guidance=p.guidance), in_one_step(copy.deepcopy(teacher))
        times = torch.cat([solver.sampling_times(), torch.tensor([-1], device=teacher.device)])
        states = _drawn(context, solver, p) if p.states == "drawn" else _of_data(context, solver, p)

        def loss(draws: torch.Generator) -> Tensor:
            z, places, asked = states(draws)
            ends = segment_ends(places, p.levels, self.segments(counter.next()))
            t, s, e = times[places], times[places + 1], times[ends]
            with torch.no_grad():
                earlier = self.teacher_step(solver, z, t, s, asked, draws)
                wanted = consistent(generator, earlier, s, e, asked)
            return (consistent(generator, z, t, e, asked) - wanted).square().mean()

        train_steps(context, "distil", dict(generator.unet.named_parameters()), loss, p, memory=counter)
        return generator

    def segments(self, step: int) -> int:
        """Into how many parts the levels are cut in a step, within each of which the generator is to be consistent."""
        return 1

    def teacher_step(
        self, teacher: TextToImageTarget, z: Tensor, t: Tensor, s: Tensor, asked: Conditioning, draws: torch.Generator
    ) -> Tensor:
        """(B, C', H', W') the teacher's way from z_t to z_s: a step of DDIM."""
        return ddim(teacher, z, guided(teacher, z, t, asked, self.params.guidance), t, s)


States: TypeAlias = "Callable[[torch.Generator], tuple[Tensor, Tensor, Conditioning]]"
"""Draws (B, C', H', W') noised pictures, the (B,) places of their levels among those of drawing, and what they are asked as."""


def consistent(generator: TextToImageTarget, z: Tensor, t: Tensor, e: Tensor, asked: Conditioning) -> Tensor:
    """(B, C', H', W') f_G(z_t -> e), which is z itself where t is e."""
    there = (t == e).reshape(-1, 1, 1, 1)
    at = t.clamp_min(0)
    return torch.where(there, z, ddim(generator, z, generator.predict_x0(z, at, asked), at, e))


def segment_ends(places: Tensor, levels: int, segments: int) -> Tensor:
    """(B,) the places at which the segments of (B,) places end, among ``levels`` places and the one behind them all."""
    length = levels // segments
    return (places // length + 1) * length


def _drawn(context: FitContext[Prompts], solver: TextToImageTarget, p: ConsistencyParams) -> States:
    """The teacher's unfinished drawings of the captions, all of a batch at one level."""
    texts, times = caption_draws(context.train), solver.sampling_times()

    def states(draws: torch.Generator) -> tuple[Tensor, Tensor, Conditioning]:
        with torch.no_grad():
            asked = solver.encode(solver.tokenize(texts(p.batch_size, draws)))
        z, t = partially_denoised(solver, asked, p.guidance, draws)
        return z.to(solver.dtype), (times == t[0]).int().argmax().expand(len(t)), asked

    return states


def _of_data(context: FitContext[Prompts], solver: TextToImageTarget, p: ConsistencyParams) -> States:
    """Noised pictures of the data, each at a level of its own."""
    pictures, times = CaptionedPictures.of(context.train, context.train["prompt"]), solver.sampling_times()

    def states(draws: torch.Generator) -> tuple[Tensor, Tensor, Conditioning]:
        latents, texts = pictures.latents(solver, p.batch_size, draws)
        places = torch.randint(len(times), (p.batch_size,), generator=draws).to(solver.device)
        with torch.no_grad():
            asked = solver.encode(solver.tokenize(texts))
        return solver.add_noise(latents, normal(solver, p.batch_size, draws), times[places]), places, asked

    return states
