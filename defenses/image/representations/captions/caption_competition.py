"""A caption model that learns from a teacher in rounds, each time more from the images where the teacher is ahead.

    round 0        min_S  mean over images and words of KL( T(. | x, words before) || S(. | x, words before) )
    round r = 1..R
      assess       H = { x : right(S, x) < right(T, x) },     right(M, x): words of M's own caption that x's caption has there
      augment      A = copies of the images of H, each moved by one pixel at random
      distil       the loss of round 0 on all images, H and A

So the student competes with its teacher, a judge says where it loses, and it sees these images more often. The judge is exact here: the
words that an image's caption has are known.

Good for a smaller caption model that is to be as right as its teacher. The control is ``compete: false``, as many images in H, drawn at
random. No stage sees an adversarial example.

From the authors: the rounds of assessment, augmentation and distillation, four of them, and imitation of the teacher. From us: images in
the place of instructions, an exact judge in that of a language model, moved copies in that of instructions that the teacher writes, and
that every round keeps all images. Read in the abstract alone.

Source: Li et al.: Unlock the power: competitive distillation for multi-modal large language models (2023), arXiv:2311.08213.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from robustkd.contracts import Arrays, FitContext
from robustkd.data.captions import tones_of
from robustkd.defenses.image.representations.captions.caption_student import CaptionStudent, CaptionStudentParams, MimicRecipe
from robustkd.defenses.training.seeding import derived_seed
from robustkd.defenses.training.stages import Stage
from robustkd.lazy import torch
from robustkd.targets.captioner import CaptionerTarget
from robustkd.targets.frozen import without_gradients

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.targets.caption_modules import Captioner

_AT_ONCE = 512


class CaptionCompetitionParams(CaptionStudentParams):
    rounds: int = Field(4, ge=1, description="R, of assessment, augmentation and distillation, after the first imitation")
    round_epochs: int | None = Field(None, ge=1, description="passes over the data in each of them; default a fifth of epochs")
    compete: bool = Field(
        True, description="choose images where the teacher is better; false is the control, as many at random"
    )


class CaptionCompetition(CaptionStudent):
    """A student of a caption model that sees the images more often of which it says less that is right."""

    Params = CaptionCompetitionParams
    source = "Li et al. 2023, arXiv:2311.08213"

    def stages(self, seen: FitContext, teacher: CaptionerTarget, student: CaptionerTarget) -> Iterator[Stage]:
        """See ``CaptionStudent.stages``: the first imitation, and the rounds that follow from what it has come to."""
        p, images, labels = self.params, seen.train.unit(), seen.train.labels
        tones = tones_of(images)
        wanted = torch.from_numpy(tones), torch.from_numpy(labels)
        theirs = right_words(teacher.module, images, *wanted)
        yield Stage("imitation", student, MimicRecipe(teacher.module, wanted[0]), p)
        later = p.model_copy(update={"epochs": p.round_epochs or -(-p.epochs // 5)})
        for number in range(1, p.rounds + 1):
            behind = np.flatnonzero((right_words(student.module, images, *wanted) < theirs).numpy())
            generator = np.random.default_rng(derived_seed(seen.seed, f"caption-competition/{number}"))
            rows = behind if p.compete else generator.choice(len(images), len(behind), replace=False)
            pool = Arrays(
                np.concatenate([images, images[rows], moved(images[rows], generator)]),
                np.concatenate([labels, labels[rows], labels[rows]]),
            )
            drawn = torch.from_numpy(np.concatenate([tones, tones[rows], tones[rows]]))
            yield Stage(f"round-{number}", student, MimicRecipe(teacher.module, drawn), later, data={"train": pool})


@without_gradients()
def right_words(model: Captioner, images: np.ndarray, tones: Tensor, labels: Tensor) -> Tensor:
    """(N,) int64 on the CPU: how many words of the model's own caption of each image stand where the image's caption has them."""
    device, training = model.tokens.device, model.training
    model.eval()
    found = []
    for rows in torch.arange(len(images)).split(_AT_ONCE):
        told = model.greedy(torch.from_numpy(images[rows.numpy()]).to(device))
        wanted = model.tokens[labels[rows].to(device), tones[rows].to(device)]
        found.append(((told == wanted) & (wanted != 0)).sum(1).cpu())
    model.train(training)
    return torch.cat(found)


def moved(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(N, C, H, W) images, each moved by at most one pixel up or down and to a side; what comes in repeats the edge."""
    up, side = generator.integers(-1, 2, (2, len(images)))
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    height, width = images.shape[2:]
    shifted = [
        padded[row, :, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        for row, (dy, dx) in enumerate(zip(up, side, strict=True))
    ]
    return np.stack(shifted) if shifted else images
