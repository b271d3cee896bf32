"""What trainings of two towers share: the trained encoder that they start or learn from, and fresh students of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pydantic import Field

from robustkd.contracts import FitContext, ModelName, TargetRef
from robustkd.contracts.params import ModelParams
from robustkd.defenses.image.representations.encoders.held_out import HeldOutParams
from robustkd.defenses.training import Teacher, TrainParams, fresh_network
from robustkd.defenses.training.networks import teacher as finished
from robustkd.defenses.training.params import OptimiserParam, WeightDecayParam
from robustkd.defenses.training.teachers import unchanged_images
from robustkd.targets import frozen
from robustkd.targets.encoder import EncoderTarget
from robustkd.targets.two_tower import ImageTower, TwoTowerTarget

ENCODER = (
    "the trained encoder with its class vectors: a two-tower defense, or any classifier, whose last linear layer is then taken for "
    "the vectors"
)


class FromEncoderParams(HeldOutParams):
    """Training parameters of what starts from a trained encoder, whose weights SGD's usual rate of 0.1 would destroy."""

    encoder: TargetRef = Field(description=ENCODER)
    optimiser: OptimiserParam = "adamw"
    lr: float | None = Field(
        1e-5,
        gt=0,
        description="learning rate at the start, for a large encoder such as CLIP's; a small or a fresh one learns at 1e-3",
    )
    weight_decay: WeightDecayParam = 1e-4


class TowerStudentParams(HeldOutParams):
    """Training parameters of a student of a trained encoder."""

    teacher: TargetRef = Field(description=ENCODER)
    student: ModelName = Field(description="the architecture of the student's image tower: a model plug-in")
    student_params: ModelParams = Field(default_factory=dict)


def two_towers(context: FitContext, name: str) -> TwoTowerTarget:
    """The finished target called ``name`` as two towers, on the device; not to be changed.

    Raises:
        UsageError: it is no classifier of the campaign's images and classes.
        TargetError: it has no linear layer for its classes.
    """
    return TwoTowerTarget.of(finished(context, name))


@contextmanager
def frozen_towers(
    context: FitContext, name: str, settings: TrainParams, *, features: bool = False
) -> Iterator[tuple[TwoTowerTarget, Teacher]]:
    """The finished target called ``name`` as two towers, frozen, and as a teacher: of logits, or of ``features`` as they are.

    Args:
        context: of the training: the images that the teacher's answers are kept for are its.
        name: the defense.
        settings: the training's.
        features: whether the teacher answers with (B, D) features instead of logits.

    Raises:
        UsageError, TargetError: see ``two_towers``.
    """
    towers = two_towers(context, name)
    asked = EncoderTarget(towers, unit=False) if features else towers
    outputs = towers.dimensions if features else towers.num_classes
    with frozen(towers.module):
        yield towers, Teacher(asked, unchanged_images(context, settings, outputs))


def tuned_copy(towers: TwoTowerTarget) -> TwoTowerTarget:
    """The same towers with weights of their own, of which those of the image tower are to be trained."""
    found = copy.copy(towers)
    found.module = copy.deepcopy(towers.module).requires_grad_(False)
    found.module.image.requires_grad_()
    return found


def fresh_student(context: FitContext, towers: TwoTowerTarget, model: str, params: Mapping[str, Any]) -> TwoTowerTarget:
    """A freshly initialised image tower that is compared with the teacher's class vectors."""
    network = fresh_network(replace(context, num_classes=towers.dimensions), model, params)
    return TwoTowerTarget(
        network.module,
        towers.vectors,
        tower=ImageTower(network=network.card()),
        input_shape=towers.input_shape,
        scale=float(towers.module.scale),
        classes=towers.classes,
    )
