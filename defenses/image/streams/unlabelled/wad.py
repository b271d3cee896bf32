"""WAD: unlabelled images are learnt by the label that labelled ones near them have, and the less the less clear that label is.

    1.  T learns from all images by contrast, without labels                                              ``contrast_epochs``
    2.  s_c(x) = max over labelled x' of class c of cos(t(x), t(x')),      t what T's last linear layer is given
        pseudo label y^ = argmax_c s_c(x),      weight w = s_(1)(x) - s_(2)(x), the two largest, divided by the largest of all images
    3.  min_S  CE(S(x), y) over labelled x  +  mean of w CE(S(x), y^) over unlabelled x                     ``epochs``
    4.  the images whose pseudo label S finds likeliest count as labelled from now on: a share of alpha (1 - r / rounds)^2 after round r
        2 to 4 are done ``rounds`` times, S goes on with its weights

An image of a foreign class is near labelled images of no class or of several alike, so its weight is small.

Good against foreign classes among unlabelled images, which an attacker can put there. Controls: ``weigh: false`` (all weights 1) and
``unlabelled: 0`` (labelled images alone).

Source: Du et al.: Semi-supervised learning via weight-aware distillation under class distribution mismatch (ICCV 2023), arXiv:2308.11874.
The abstract speaks of point-wise mutual information; the authors' code was read (RUC-DWBI-ML/research, WAD-master, evals/eval.py and
SSL/train/train.py) and has the largest cosine and the difference above, five rounds, alpha = 0.1 and temperature 0.5; it trains by
Adam 5e-4, T for 700 epochs, which are not the defaults here, and logs accuracy on test data. There the features are those of the
projection and of augmented copies. Here t is what its last linear layer is given, weights are divided by their largest, and a step draws as
many labelled images as it has unlabelled ones. ``inner`` is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from robustkd.contracts import Arrays, FitContext, ThreatModel
from robustkd.defenses.image.streams.stream import Beside, features_of, masked
from robustkd.defenses.image.streams.unlabelled.learner import UnlabelledLearner
from robustkd.defenses.image.streams.unlabelled.split import Divided, StudentRecipe, UnlabelledParams, contrastive
from robustkd.defenses.training import Minibatch, fresh_network
from robustkd.defenses.training.stages import Stage
from robustkd.lazy import F, torch
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 500


class WADParams(UnlabelledParams):
    """Parameters of ``wad``."""

    rounds: int = Field(5, ge=1, description="how often pseudo labels are made anew")
    alpha: float = Field(0.1, ge=0, le=1, description="share of the unlabelled images that may become labelled in a round")
    weigh: bool = Field(True, description="whether unclear images count less")
    unlabelled: float = Field(1.0, ge=0, description="of the loss on unlabelled images")


def knowledge(unlabelled: Tensor, labelled: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """(U,) pseudo labels and (U,) weights in [0, 1] of (U, D) features, by (L, D) features of (L,) labels below ``classes``."""
    cosines = F.normalize(unlabelled.float(), dim=1) @ F.normalize(labelled.float(), dim=1).T
    scores = torch.stack([cosines[:, labels == name].max(1).values for name in range(classes)], 1)
    first, second = scores.topk(2, dim=1).values.T
    margin = first - second
    return scores.argmax(1), margin / margin.max().clamp_min(torch.finfo(margin.dtype).tiny)


class WADRecipe(StudentRecipe):
    """Labelled images, drawn beside the minibatch, and weighted pseudo labels."""

    supports_data_parallel = False  # the labelled images of a step are drawn for the whole minibatch

    def __init__(self, params: WADParams, threat: ThreatModel, labelled: Beside, weights: Tensor) -> None:
        super().__init__(params, threat)
        self.labelled, self.weights = labelled, weights

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Both cross entropies."""
        beside = self.labelled.drawn(batch, len(batch.x), "wad/labelled")
        hard = F.cross_entropy(target(self.images(target, beside)), beside.y)
        if not self.params.unlabelled:
            return hard, {"loss_unlabelled": torch.zeros_like(hard)}
        each = F.cross_entropy(target(self.images(target, batch)), batch.y, reduction="none")
        soft = (self.weights[batch.index] * each).mean()
        return hard + self.params.unlabelled * soft, {"loss_unlabelled": soft}


class WAD(UnlabelledLearner):
    """A network that learns from unlabelled images what it can be sure of."""

    Params = WADParams
    source = "Du et al. 2023, arXiv:2308.11874"

    def stages(self, context: FitContext[Arrays], student: ClassifierTarget, divided: Divided) -> Iterator[Stage]:
        """The teacher's, and the rounds of the student."""
        p = self.params
        teacher = fresh_network(context, p.model, p.model_params, role=self.TEACHER)
        yield contrastive(context, teacher, p, divided)
        trained = masked(student, divided.known)
        sure, labels, rest = divided.labelled, np.asarray(divided.train.labels)[divided.labelled], divided.unlabelled
        for number in range(1, p.rounds + 1):
            near, far = (features_of(teacher, divided.images(rows), context.device) for rows in (sure, rest))
            found, weights = knowledge(far, near, torch.from_numpy(labels).to(far.device), len(divided.known))
            pseudo = found.cpu().numpy()
            told = divided.images(rest, pseudo)
            beside = Beside(divided.images(sure, labels), context.device)
            recipe = WADRecipe(p, context.threat, beside, weights if p.weigh else torch.ones_like(weights))
            yield Stage(f"student-{number}", trained, recipe, p, data={"train": told, "validation": divided.validation})
            order = _surprise(trained, told, context.device).argsort(kind="stable")
            count = int(p.alpha * (1 - number / p.rounds) ** 2 * len(rest))
            sure, labels = np.concatenate([sure, rest[order[:count]]]), np.concatenate([labels, pseudo[order[:count]]])
            rest = rest[order[count:]]


def _surprise(network: ClassifierTarget, data: Arrays, device: torch.device) -> np.ndarray:
    """(N,) the cross entropy of each image's label."""
    x, y = torch.from_numpy(data.unit()), torch.from_numpy(np.asarray(data.labels))
    network.module.eval()
    with torch.no_grad():
        parts = zip(x.split(_BATCH), y.split(_BATCH), strict=True)
        found = [F.cross_entropy(network(a.to(device)), b.to(device), reduction="none") for a, b in parts]
    values: np.ndarray = torch.cat(found).cpu().numpy()
    return values
