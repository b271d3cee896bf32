"""What is labelled and what is not: a few images of the known classes, and the others, with images of foreign classes among them.

The first ``known`` classes are the task. Of each, ``labelled`` images keep their label; all others of these classes lose it. Images of the
other classes join them until they are the share ``foreign`` of the unlabelled ones. The network answers known classes alone, so its
accuracy is that of the known classes' images: name them in the campaign's ``groups``. Its epoch is chosen on validation images of these.

Source: the mismatch of Guo et al.: Safe deep semi-supervised learning for unseen-class unlabeled data (ICML 2020), as WAD's public code has
it (RUC-DWBI-ML/research, WAD-master/datasets.py, read): ceil(m T / (1 - m)) foreign images to T known ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from robustkd.contracts import Arrays, FitContext, ThreatModel, UsageError
from robustkd.defenses.image.streams.contrast import two_views
from robustkd.defenses.image.streams.stream import of_classes
from robustkd.defenses.training import Adversary, InnerMaximisation, Minibatch, NetworkParams, Recipe
from robustkd.defenses.training.augment import crop_flip
from robustkd.defenses.training.auxiliary import with_auxiliary
from robustkd.defenses.training.networks import seeded_init
from robustkd.defenses.training.seeding import derived_seed
from robustkd.defenses.training.stages import Stage
from robustkd.lazy import nn
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import last_linear, with_penultimate

if TYPE_CHECKING:
    from torch import Tensor


class UnlabelledParams(NetworkParams):
    """Parameters of every method that learns from labelled and unlabelled images."""

    known: int | None = Field(None, ge=2, description="the first so many classes are the task; default all")
    labelled: int = Field(10, ge=1, description="labelled images of each of them")
    foreign: float = Field(0.0, ge=0, lt=1, description="share of the unlabelled images that are of other classes")
    contrast_epochs: int = Field(100, ge=1, description="passes of the contrastive training of the teacher")
    tau: float = Field(0.5, gt=0, description="its temperature")
    width: int = Field(128, ge=1, description="outputs of its projection")
    inner: InnerMaximisation | None = Field(
        None, description="adversarial examples to train the student on in place of the images; {} makes them by 10 steps"
    )


@dataclass(frozen=True)
class Divided:
    """The training data of such a method.

    Attributes:
        known: the classes.
        train: all images.
        labelled, unlabelled: the rows of those that are used; the labels of the second are not to be looked at.
        validation: images of the known classes.
    """

    known: list[int]
    train: Arrays
    labelled: np.ndarray
    unlabelled: np.ndarray
    validation: Arrays

    @property
    def all(self) -> np.ndarray:
        """The rows of labelled images first."""
        return np.concatenate([self.labelled, self.unlabelled])

    def images(self, rows: np.ndarray, labels: np.ndarray | None = None) -> Arrays:
        """The images of these rows, with other labels where some are given."""
        chosen = self.train.select(rows)
        return chosen if labels is None else replace(chosen, labels=labels.astype(np.int64))


def divided_by_labels(context: FitContext[Arrays], params: UnlabelledParams) -> Divided:
    """The same images are labelled in every run of one seed.

    Raises:
        UsageError: there are not as many classes, or not as many images.
    """
    count = context.num_classes if params.known is None else params.known
    if count > context.num_classes:
        raise UsageError(f"known: {count} of {context.num_classes} classes", fix=f"give at most {context.num_classes}")
    known, labels = list(range(count)), np.asarray(context.train.labels)
    rng = np.random.default_rng(derived_seed(context.seed, "labelled"))
    shuffled = rng.permutation(len(labels))
    kept = []
    for name in known:
        rows = shuffled[labels[shuffled] == name]
        if len(rows) <= params.labelled:
            raise UsageError(
                f"labelled: {params.labelled} of the {len(rows)} training images of class {name} leave none unlabelled",
                fix="label fewer, or take more training data",
            )
        kept.append(rows[: params.labelled])
    chosen = np.concatenate(kept)
    inside = shuffled[np.isin(labels[shuffled], known) & ~np.isin(shuffled, chosen)]
    outside = shuffled[~np.isin(labels[shuffled], known)]
    wanted = math.ceil(params.foreign * len(inside) / (1 - params.foreign))
    if wanted > len(outside):
        raise UsageError(
            f"foreign: {params.foreign:g} asks for {wanted} images of other classes, and there are {len(outside)}",
            fix="give a smaller share, or fewer known classes",
        )
    rest = np.concatenate([inside, outside[:wanted]])
    return Divided(known, context.train, np.sort(chosen), np.sort(rest), of_classes(context.validation, known))


class StudentRecipe(Recipe[ClassifierTarget]):
    """A loss on images, or on adversarial examples of the network in their place."""

    def __init__(self, params: Any, threat: ThreatModel) -> None:
        self.params = params
        self.threat = threat if params.inner is not None else None
        self.adversary = None if params.inner is None else Adversary.under(params.inner, threat)

    def images(self, target: ClassifierTarget, batch: Minibatch) -> Tensor:
        """(B, C, H, W) the images, or adversarial examples of them for the labels of the minibatch."""
        return batch.x if self.adversary is None else self.adversary(target, batch)


class ContrastRecipe(Recipe[ClassifierTarget]):
    """SimCLR: two shifted and mirrored copies of an image are drawn together, no label is looked at."""

    supports_data_parallel = False  # the negatives are those of the whole minibatch

    def __init__(self, network: ClassifierTarget, projection: nn.Module, tau: float) -> None:
        self.network, self.projection, self.tau = network, projection, tau

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The contrast of two views."""
        first, second = (self._projected(crop_flip(batch.x, batch.rng(f"view/{number}"))) for number in range(2))
        return two_views(first, second, batch.index, self.tau), {}

    def _projected(self, x: Tensor) -> Tensor:
        projected: Tensor = self.projection(with_penultimate(self.network, x)[1])
        return projected


def contrastive(context: FitContext[Arrays], network: ClassifierTarget, params: UnlabelledParams, divided: Divided) -> Stage:
    """The stage in which a network learns from all images without labels; its last epoch is taken."""
    width = last_linear(network.module).in_features
    with seeded_init(context, "projection"):
        projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, params.width))
    data: Mapping[str, Any] = {"train": divided.images(divided.all), "validation": divided.validation}
    settings = params.model_copy(update={"epochs": params.contrast_epochs, "selection": "last", "milestones": None})
    recipe = ContrastRecipe(network, projection, params.tau)
    return Stage("contrast", with_auxiliary(network, projection=projection), recipe, settings, data=data)
