"""MSD: several generators of one step, each for some of the conditions; one may hold all that is forbidden, and be left out.

    student k     a generator distilled as in ``dmd2``, on captions of its own concepts alone
    router        a prompt goes to the student of the concept whose captions' mean encoding is nearest to its own

``drop: true`` leaves out every student that has a forbidden concept: unlearning by construction, as no weight of what is left was ever
trained on a forbidden caption. What the router sends there is drawn as the empty prompt by the first student that is left. Whoever asks
for a forbidden concept has then to get past the router, and to find it in a student that has never been asked for it; its teacher had, and
the student begins as the teacher.

Controls: ``dmd2`` with as many steps, which is one student for everything, and ``drop: false``.

Source: Song et al.: Multi-student diffusion distillation for better one-step generators (2024), arXiv:2410.23274, of which the abstract was
read: a student for each subset of conditions, by distribution matching. Left out, as reduced: their adversarial stage, and smaller students
with the warm-up that these need. The split into kept and forbidden concepts, the router by encodings (theirs knows each condition's
student) and dropping are ours.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import DataError, FitContext, Params, Prompts
from robustkd.defenses.diffusion.erasing import encoded_together
from robustkd.defenses.diffusion.one_step.dmd2 import DMD2, DMD2Params
from robustkd.defenses.diffusion.one_step.score_distillation import Models, captions_of, distil
from robustkd.lazy import nn, torch
from robustkd.targets.altered_drawing import AlteredDrawing
from robustkd.targets.text_encoders import Conditioning
from robustkd.targets.text_to_image import TextToImageTarget

if TYPE_CHECKING:
    from torch import Tensor


class MSDSettings(Params):
    """Who draws what."""

    student_of: tuple[int, ...] = Field(min_length=1, description="by concept, which student draws it; -1: none")


class MSDParams(DMD2Params):
    students: tuple[tuple[str, ...], ...] | None = Field(
        None,
        min_length=1,
        description="the concepts of each student; default: one for the kept ones, one for the forbidden ones",
    )
    drop: bool = Field(False, description="whether students with a forbidden concept are left out")


class MSDTarget(AlteredDrawing[MSDSettings]):
    """Students that draw in one step, and the router before them.

    Args:
        model: the first student.
        settings: who draws what.
        others: the other students; copies of the first by default.
        means: (C, D) what the text encoder says of each concept's captions, in the mean; zeros by default.
    """

    kind = "msd"
    Settings = MSDSettings

    def __init__(
        self,
        model: TextToImageTarget,
        settings: MSDSettings,
        others: Sequence[TextToImageTarget] | None = None,
        means: Tensor | None = None,
    ) -> None:
        super().__init__(model, settings)
        if others is None:
            others = [copy.deepcopy(model) for _ in range(max(settings.student_of))]
        self.students = [model, *others]
        width = int(self.unet.config.cross_attention_dim)
        self.router = _router(torch.zeros(len(settings.student_of), width) if means is None else means.float())
        self.router.to(model.device)
        parts: dict[str, Any] = dict(model.module.items())
        more = nn.ModuleList([other.unet for other in others])
        self.module = nn.ModuleDict({**parts, "others": more, "router": self.router})

    @override
    def drawing_by(self, scheduler: Any, *, guidance: float, steps: int) -> TextToImageTarget:
        first, *others = (each.drawing_by(scheduler, guidance=guidance, steps=steps) for each in self.students)
        return type(self)(first, self.settings, others, self.router.means)

    def route(self, hidden: Conditioning) -> Tensor:
        """(B,) which student draws each prompt, -1 for none."""
        concept = torch.cdist(summary(hidden), self.router.means).argmin(1)
        return torch.tensor(self.settings.student_of, device=concept.device)[concept]

    @override
    def _asked(self, latents: Tensor, t: Tensor, hidden: Conditioning) -> Tensor:
        student = self.route(hidden)
        if bool((student < 0).any()):
            hidden = _where(student < 0, self.unconditional(), hidden)
        levels = t.expand(len(latents)) if t.dim() == 0 else t
        said = torch.zeros_like(latents)
        for number, one in enumerate(self.students):
            rows = (student.clamp_min(0) == number).nonzero().squeeze(1)
            if len(rows):
                said = said.index_put((rows,), one.unet_output(latents[rows], levels[rows], hidden[rows]).to(said))
        return said


def _router(means: Tensor) -> Any:
    """A module that keeps the means with the weights."""
    router = nn.Module()
    router.register_buffer("means", means)
    return router


def _where(rows: Tensor, one: Conditioning, others: Conditioning) -> Conditioning:
    """The one row of ``one`` in the (B,) ``rows``, those of ``others`` elsewhere."""
    tokens = torch.where(rows[:, None, None], one.tokens, others.tokens)
    if others.pooled is None or one.pooled is None:
        return Conditioning(tokens)
    return Conditioning(tokens, torch.where(rows[:, None], one.pooled, others.pooled))


def summary(hidden: Conditioning) -> Tensor:
    """(B, D) float32, the mean of what the UNet is told over all positions but the first, which is the same for all prompts."""
    return hidden.tokens[:, 1:].float().mean(1)


class MSD(DMD2):
    """Distil the model into several generators of one step, each for its own concepts."""

    Params = MSDParams
    source = "Song et al., Multi-student diffusion distillation for better one-step generators, 2024, arXiv:2410.23274"

    @override
    def fit(self, context: FitContext[Prompts]) -> TextToImageTarget:
        """Train the students that are kept, one after the other.

        Raises:
            UsageError: the base draws nothing.
            DataError: a concept is unknown, or has no student or two; or no student is left.
        """
        p, train = self.params, context.train
        teacher = context.target(p.base, TextToImageTarget).to(context.device)
        students = subsets(train, p.students)
        forbidden = set(train.where("role", "forbidden")["concept"])
        kept = [number for number, names in enumerate(students) if not (p.drop and forbidden & set(names))]
        if not kept:
            raise DataError(
                "every student has a forbidden concept, so none is left", fix="give students without one, or drop: false"
            )
        generators = []
        for number in kept:
            models = Models.begin(teacher)
            own = replace(context, train=train.where("concept", *students[number]))
            distil(context, f"student-{number}", models, captions_of(own, teacher, p.batch_size), self, p)
            generators.append(models.generator)
        concepts = [name for names in students for name in names]
        student_of = tuple(kept.index(number) if number in kept else -1 for number, names in enumerate(students) for _ in names)
        means = torch.stack(
            [summary(encoded_together(teacher, list(train.where("concept", name)["prompt"]))).mean(0) for name in concepts]
        )
        made = MSDTarget(generators[0], MSDSettings(student_of=student_of), generators[1:], means)
        made.module.eval()
        return made


def subsets(train: Prompts, students: tuple[tuple[str, ...], ...] | None) -> list[tuple[str, ...]]:
    """The concepts of each student: those given, else the kept and the forbidden ones.

    Raises:
        DataError: they are no partition of the data's concepts.
    """
    known = list(dict.fromkeys(train["concept"]))
    if students is None:
        forbidden = set(train.where("role", "forbidden")["concept"])
        both = (tuple(name for name in known if (name in forbidden) is bad) for bad in (False, True))
        return [names for names in both if names]
    given = [name for names in students for name in names]
    if sorted(given) != sorted(known):
        wrong = next((name for name in given if given.count(name) > 1 or name not in known), None)
        missing = next((name for name in known if name not in given), None)
        said = f"'{wrong}' has two students or is no concept" if wrong else f"the concept '{missing}' has no student"
        raise DataError(f"msd: {said}", fix=f"name each of these once: {', '.join(known)}")
    return list(students)
