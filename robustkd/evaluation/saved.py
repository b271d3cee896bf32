"""Adversarial inputs as files: a NumPy archive, or a folder of PNG images with a table of what became of each."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from robustkd.contracts import Attack, AttackResult, Batch, PixelBudget, StoreError, Target, ThreatModel, UsageError
from robustkd.contracts.image_changes import ImageChange
from robustkd.evaluation.draws import seeded_target
from robustkd.evaluation.images import BATCH_SIZE, with_clean_logits
from robustkd.evaluation.judging import ImageOutcome, judge
from robustkd.lazy import torch
from robustkd.normalisation.unit import Unit
from robustkd.scoring.distances import distance, within
from robustkd.targets import frozen

if TYPE_CHECKING:
    from torch import Tensor

TABLE = "samples.csv"
LEVELS = 255
"""Steps of a pixel in a PNG image of 8 bits."""
_PARTS = ("clean", "adversarial")


@dataclass(frozen=True)
class Attacked:
    """Who was attacked, with what and on which samples: what it takes to judge other inputs in the same way.

    Attributes:
        batch: the samples, on the CPU.
        seed: of what a target draws that draws random numbers.
        unit: of the inputs as the user has them; None where they are in [0, 1].
    """

    target: Target
    attack: Attack
    threat: ThreatModel
    batch: Batch
    seed: int
    unit: Unit | None = None

    @property
    def length(self) -> float:
        """What a distance in [0, 1] is multiplied with in the user's unit."""
        budget = self.threat.budget
        return self.unit.length(budget.norm) if self.unit is not None and isinstance(budget, PixelBudget) else 1.0

    def judged(self, clean: Tensor, adversarial: Tensor) -> ImageOutcome:
        """The outcome for the (N, *shape) inputs ``adversarial``, made from ``clean``, as of an attack that returned them."""
        parts = []
        with frozen(self.target.module), seeded_target(self.target, self.seed):
            for first in range(0, len(clean), BATCH_SIZE):
                rows = slice(first, first + BATCH_SIZE)
                asked = replace(self.batch.select(rows), inputs=clean[rows], logits=None, draws=None)
                batch = with_clean_logits(self.target, asked.to(self.target.device)).placed(self.threat, self.seed)
                found = adversarial[rows].to(batch.inputs)
                none = torch.zeros(len(batch), dtype=torch.int64)
                result = AttackResult(found, torch.zeros(len(batch), dtype=torch.bool), none, none)
                parts.append(judge(self.target, self.attack, batch, self.threat, result))
        return ImageOutcome.joined(parts)


def require_place(path: str | os.PathLike[str], shape: tuple[int, ...], threat: ThreatModel) -> None:
    """Refuse a place that inputs of ``shape`` cannot be saved to; before an attack, this costs nothing.

    Raises:
        UsageError: it is neither an archive's name nor a folder's, it holds something already, the inputs are no PNG images, or no
            rounded image would be within the budget.
    """
    file = Path(path)
    if not file.resolve().parent.is_dir():
        raise UsageError(f"there is no folder {file.parent}", fix="make it first")
    if _is_archive(path):
        if file.is_dir():
            raise UsageError(f"{file} is a folder", fix="give the archive another name")
        return
    if file.exists() and (not file.is_dir() or any(file.iterdir())):
        raise UsageError(f"{file} is there already and not an empty folder", fix="name a folder that is new or empty")
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UsageError(
            f"inputs of shape {shape} are no PNG images of 1 or 3 channels", fix="save them as an archive, adv.npz"
        )
    if isinstance(threat.budget, ImageChange):
        raise UsageError(
            f"an image that is rounded to 8 bits may be none that the threat model ({threat}) allows",
            fix="save them as an archive, adv.npz",
        )


def save(
    path: str | os.PathLike[str],
    attacked: Attacked,
    adversarial: Tensor,
    outcome: ImageOutcome,
    ids: np.ndarray | None = None,
) -> str:
    """Write (N, *shape) adversarial inputs, in the user's unit, with the clean ones, and say what was written in a sentence.

    An archive (``.npz``) holds the inputs as they are. PNG images have 8 bits: both images are rounded, the adversarial one so that
    it stays inside its budget, the model is asked about them anew, and the folder's ``samples.csv`` says what it answered.

    Args:
        path: ``adv.npz``, or a folder.
        outcome: of these inputs.
        ids: (N,) what the samples are called; their index by default.

    Raises:
        UsageError: as for ``require_place``.
        StoreError: it cannot be written.
    """
    require_place(path, tuple(adversarial.shape[1:]), attacked.threat)
    names = outcome.index if ids is None else ids
    try:
        if _is_archive(path):
            columns = _columns(attacked, outcome, names)
            goals = {} if attacked.batch.goals is None else {"goals": attacked.batch.goals.numpy()}
            clean = attacked.batch.inputs if attacked.unit is None else attacked.unit.restored(attacked.batch.inputs)
            inputs = {"x": clean.numpy(), "adversarial": adversarial.numpy()}
            np.savez(Path(path), **inputs, **columns, **goals)  # type: ignore[arg-type]
            return f"{path}: {len(adversarial)} samples, {int(outcome.success.sum())} of them broken"
        pixels = adversarial if attacked.unit is None else attacked.unit.inputs(adversarial)
        return _save_images(Path(path), attacked, pixels, outcome, names)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error


def _is_archive(path: str | os.PathLike[str]) -> bool:
    name = os.fspath(path)
    suffix = Path(name).suffix
    if suffix and suffix != ".npz" and not name.endswith(("/", os.sep)) and not Path(name).is_dir():
        raise UsageError(f"{name} is neither an archive nor a folder", fix="write adv.npz, or folder/ for PNG images")
    return suffix == ".npz"


def _columns(attacked: Attacked, outcome: ImageOutcome, ids: np.ndarray) -> dict[str, np.ndarray]:
    """What became of each sample, by the names that the files have."""
    own = attacked.batch.eps
    return {
        "id": ids,
        "y": outcome.label,
        "prediction": outcome.before,
        "adversarial_prediction": outcome.after,
        "success": outcome.success,
        "distance": outcome.distance,
        "norm": np.full(len(outcome), attacked.threat.budget.stored[0]),
        "eps": attacked.length * (np.full(len(outcome), attacked.threat.eps) if own is None else own.numpy()),
    }


def _save_images(folder: Path, attacked: Attacked, adversarial: Tensor, outcome: ImageOutcome, ids: np.ndarray) -> str:
    from PIL import Image

    levels = _rounded(attacked, adversarial)
    held = attacked.judged(*(part.to(torch.float32) / LEVELS for part in levels))
    held = replace(held, distance=held.distance * attacked.length)
    columns = _columns(attacked, held, ids)
    files = [f"{row:06d}.png" for row in range(len(held))]
    for part, images in zip(_PARTS, levels, strict=True):
        (folder / part).mkdir(parents=True)
        for file, image in zip(files, images.to(torch.uint8).numpy(), strict=True):
            Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(folder / part / file)
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerow(["file", *columns])
        writer.writerows(zip(files, *(column.tolist() for column in columns.values()), strict=True))
    survive, broken = int((held.success & outcome.success).sum()), int(outcome.success.sum())
    told = (
        f"{folder}: {len(held)} pairs of PNG images; {survive} of {broken} broken samples are broken after rounding to 8 bits"
    )
    more = int((held.success & ~outcome.success).sum())
    return f"{told}, and {more} more by it" if more else told


def _rounded(attacked: Attacked, adversarial: Tensor) -> tuple[Tensor, Tensor]:
    """The clean and the adversarial images in whole levels of 8 bits.

    An adversarial image is rounded to the nearest levels, or, where that carries it out of its budget, its perturbation is rounded
    towards zero, which makes no norm larger.
    """
    inputs, norm = attacked.batch.inputs, attacked.threat.norm
    clean = (LEVELS * inputs).round()
    nearest = (LEVELS * adversarial).round().clamp(0, LEVELS)
    inside = within(distance((nearest - clean) / LEVELS, norm), attacked.batch.budget(attacked.threat), norm, inputs.shape[1:])
    smaller = clean + (LEVELS * (adversarial - inputs)).trunc()
    keep = inside.view(-1, *[1] * (clean.ndim - 1))
    return clean, torch.where(keep, nearest, smaller.clamp(0, LEVELS))
