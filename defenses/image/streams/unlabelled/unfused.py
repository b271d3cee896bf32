"""UnFuSeD: an encoder that learnt without labels sorts the images into clusters, and a fresh network learns these before its few labels.

    1.  T learns from all images by contrast, without labels                    ``contrast_epochs``
    2.  k-means sorts all images, labelled and not, by what T's last linear layer is given
    3.  S, a fresh network with a head of ``clusters`` outputs, learns the clusters         ``cluster_epochs``
    4.  S learns the labelled images                                             ``epochs``

Good when labels are few. Controls: ``cluster_epochs: 0``, labelled images alone; ``fresh: false``, in which the encoder itself goes on in
step 4, as pre-training usually does.

Source: Seth et al.: UnFuSeD: unsupervised finetuning using self supervised distillation (2023), arXiv:2303.05668; its abstract was read.
The paper's encoder, on audio, learns by an algorithm of its own, and pseudo labels guide a self-distillation whose form the abstract does
not tell: here SimCLR and plain cross entropy take their places, on images: a reduced form. ``inner`` is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from robustkd.contracts import Arrays, FitContext
from robustkd.defenses.image.streams.stream import features_of, masked
from robustkd.defenses.image.streams.unlabelled.learner import UnlabelledLearner
from robustkd.defenses.image.streams.unlabelled.split import Divided, StudentRecipe, UnlabelledParams, contrastive
from robustkd.defenses.training import Minibatch, Recipe, fresh_network
from robustkd.defenses.training.auxiliary import with_auxiliary
from robustkd.defenses.training.networks import seeded_init
from robustkd.defenses.training.seeding import derived_seed
from robustkd.defenses.training.stages import Stage
from robustkd.lazy import F, nn
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import last_linear, with_penultimate

if TYPE_CHECKING:
    from torch import Tensor

_ROUNDS = 50
"""Of k-means, at most."""


class UnFuSeDParams(UnlabelledParams):
    """Parameters of ``unfused``."""

    clusters: int | None = Field(None, ge=2, description="k; default as many as known classes")
    cluster_epochs: int = Field(50, ge=0, description="passes in which the student learns the clusters; 0 leaves them out")
    fresh: bool = Field(True, description="whether the student begins with weights of its own; else with the encoder's")


def k_means(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(N,) which of ``count`` clusters each of (N, D) points is in; no cluster is empty where there are as many different points.

    Lloyd's algorithm from k-means++ (Arthur and Vassilvitskii, SODA 2007).
    """
    wide = points.astype(np.float64)
    centres = [wide[rng.integers(len(wide))]]
    for _ in range(count - 1):
        nearest = np.min([np.square(wide - centre).sum(1) for centre in centres], 0)
        chances = nearest / nearest.sum() if nearest.any() else np.full(len(wide), 1 / len(wide))
        centres.append(wide[rng.choice(len(wide), p=chances)])
    means = np.stack(centres)
    found = np.full(len(wide), -1)
    for _ in range(_ROUNDS):
        apart = np.stack([np.square(wide - mean).sum(1) for mean in means], 1)
        now = apart.argmin(1)
        for empty in np.setdiff1d(np.arange(count), now):
            now[apart[np.arange(len(wide)), now].argmax()] = empty
        if (now == found).all():
            break
        found = now
        means = np.stack([wide[found == name].mean(0) if (found == name).any() else means[name] for name in range(count)])
    return found


class ClusterRecipe(Recipe[ClassifierTarget]):
    """The cross entropy of the clusters."""

    def __init__(self, network: ClassifierTarget, head: nn.Module) -> None:
        self.network, self.head = network, head

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """CE(h(s(x)), cluster)."""
        return F.cross_entropy(self.head(with_penultimate(self.network, batch.x)[1]), batch.y), {}


class FewLabelsRecipe(StudentRecipe):
    """The cross entropy of the labelled images."""

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """CE(S(x), y)."""
        return F.cross_entropy(target(self.images(target, batch)), batch.y), {}


class UnFuSeD(UnlabelledLearner):
    """A network that learns the clusters of another one before its few labels."""

    Params = UnFuSeDParams
    source = "reduced from Seth et al. 2023, arXiv:2303.05668"

    @property
    def role(self) -> str:
        """Whose first weights the student has: the encoder's where it is the encoder."""
        return super().role if self.params.fresh else self.TEACHER

    def stages(self, context: FitContext[Arrays], student: ClassifierTarget, divided: Divided) -> Iterator[Stage]:
        """The encoder's, those of the clusters, and those of the labels."""
        p = self.params
        encoder = fresh_network(context, p.model, p.model_params, role=self.TEACHER) if p.fresh else student
        if p.cluster_epochs or not p.fresh:
            yield contrastive(context, encoder, p, divided)
        if p.cluster_epochs and p.fresh:
            yield self._clustered(context, encoder, student, divided)
        data = {"train": divided.images(divided.labelled), "validation": divided.validation}
        recipe = FewLabelsRecipe(p, context.threat)
        yield Stage("labels", masked(student, divided.known), recipe, p, data=data)

    def _clustered(
        self, context: FitContext[Arrays], encoder: ClassifierTarget, student: ClassifierTarget, divided: Divided
    ) -> Stage:
        """The stage in which the student learns the clusters; its last epoch is taken."""
        p, images = self.params, divided.images(divided.all)
        count = p.clusters or len(divided.known)
        rng = np.random.default_rng(derived_seed(context.seed, "clusters"))
        found = k_means(features_of(encoder, images, context.device).float().cpu().numpy(), count, rng)
        with seeded_init(context, "clusters"):
            head = nn.Linear(last_linear(student.module).in_features, count)
        settings = p.model_copy(update={"epochs": p.cluster_epochs, "selection": "last", "milestones": None})
        data = {"train": divided.images(divided.all, found), "validation": divided.validation}
        return Stage("clusters", with_auxiliary(student, clusters=head), ClusterRecipe(student, head), settings, data=data)
