"""DATM: difficulty-aligned trajectory matching. Students start at later epochs the longer it goes, and soft labels are learnt.

    t <= T + (max_start - T) * step / expansion            the window of epochs grows
    l = CE(f(A(x)), softmax(y)),   y learnt with the pixels,   y at the start: the answers of an expert
    X starts from images that this expert classifies correctly;   a loss above the threshold moves nothing

Early epochs teach what is easy and suit small sets, late ones what is hard and suit large sets.

From the authors: the four points, learning rates and windows. From us: as in ``mtt``; the labels begin at the answers of one expert (in the
authors' code at the mean of all experts that are right) and share the pixels' momentum; the window's last epoch is inside; a refused loss
counts as one without a gradient, so that the momentum goes on; and the label beside a learnt distribution stays the one of the image.

Control: ``mtt`` (no learnt labels, a constant window), and ``random-subset``.

Source: Guo et al.: Towards lossless dataset distillation via difficulty-aligned trajectory matching (ICLR 2024), arXiv:2310.05773;
settings as in the authors' configuration for CIFAR-10 with 10 images a class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field, model_validator

from robustkd.condensers.engine.experts import Flat
from robustkd.condensers.engine.rows import generator, rows_by_class
from robustkd.condensers.engine.unrolled import TrajectoryMatching, TrajectoryParams
from robustkd.contracts import Arrays, FitContext, Params
from robustkd.defenses.training.batches import Samples
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 500


class DATMParams(TrajectoryParams):
    steps: int = Field(10_000, ge=1, description="steps of the pixels")
    student_steps: int = Field(80, ge=1, description="N, steps of the student on the synthetic images")
    max_start: int = Field(20, ge=0, description="the latest epoch that a student starts from, once the window has grown")
    first_max_start: int = Field(10, ge=0, description="T, the latest at the beginning")
    expansion: int = Field(1_000, ge=1, description="steps in which the window grows")
    label_lr: float = Field(2.0, ge=0, description="learning rate of the labels (SGD); 0 leaves them at the expert's answers")
    threshold: float = Field(1.0, gt=0, description="a loss above it moves nothing")
    ema: float | None = Field(0.9995, gt=0, lt=1, description="deploy a moving average of the pixels with this decay")

    @model_validator(mode="after")
    def _window_grows(self) -> DATMParams:
        if not self.min_start <= self.first_max_start <= self.max_start:
            raise ValueError("min_start <= first_max_start <= max_start is meant: the window of epochs grows")
        return self


class DATM(TrajectoryMatching):
    """Images and soft labels that are matched with later and later epochs."""

    Params: ClassVar[type[Params]] = DATMParams
    source = "Guo et al. 2024, arXiv:2310.05773"

    def window(self, step: int) -> tuple[int, int]:
        """The window of epochs in a step."""
        p = self.params
        grown = min(1.0, step / p.expansion)
        return p.min_start, p.first_max_start + int((p.max_start - p.first_max_start) * grown)

    def admitted(self, loss: Tensor) -> Tensor:
        """The loss, or the same without a gradient where it is above the threshold."""
        return loss if loss.item() <= self.params.threshold else loss * 0

    def start(self, context: FitContext[Arrays], flat: Flat, paths: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images that an expert classifies correctly, their labels, and its answers."""
        p, rng = self.params, generator(context, "rows")
        expert = paths[int(rng.integers(len(paths)))][p.max_start + p.expert_epochs].to(context.device)
        samples = Samples(context.train, context.device)
        with torch.no_grad():
            answers = torch.cat([flat(expert, samples.take(rows)[0]) for rows in torch.arange(len(samples)).split(_BATCH)])
        right = (answers.argmax(1) == samples.labels).cpu().numpy()
        chosen = []
        for of_class in rows_by_class(context.train.labels).values():
            order = rng.permutation(of_class)
            # Right ones first; of a class that the expert has not learnt, whatever there is.
            order = np.concatenate([order[right[order]], order[~right[order]]])
            chosen.append(order[: p.images_per_class])
        rows = torch.from_numpy(np.sort(np.concatenate(chosen)))
        images, labels = samples.take(rows)
        return images, labels, answers[rows.to(answers.device)].clone()
