"""HPCR: PCR with pairs of images in large minibatches, a temperature that goes up and down, and two things kept of the old network.

    min  s(step) * L_PCR   +  alpha * mean ( c(x) - c_old(x) )^2   +  beta * mean CE( r_old(x) || r(x) )

    s(step) = low + (high - low) (1 - cos(2 pi step / period)) / 2                    the gradient's size, apart from tau
    c(x)    = cos(f(x), w_c) / tau for the old classes c that are in the minibatch     proxies' scores (PCD)
    r(x)    = softmax over the other remembered images x' of cos(f(x), f(x')) / tau    relations (SCD)

The last two are over the remembered images of the minibatch. In minibatches of at least ``pairs_from`` images, L_PCR also compares images
with each other: those of one class are drawn together, all others stand beside the proxies in the denominator.

Good with few remembered images. Control: ``pcr``, or ``alpha: 0`` and ``beta: 0`` for the two terms.

Source: Lin et al.: HPCR: holistic proxy-based contrastive replay for online continual learning (2023), arXiv:2309.15038; the authors' code
was read (FelixHuiweiLin/PCR, agents/hpcr.py, general_main.py): low 0.5625, high 1.8, period 500, alpha 0.01 on ten classes and 0.1 on a
hundred, beta 0.5, tau 0.09. There the old scores and features are those from when an image was stored, and a class of which the minibatch
has two images counts twice in L_PCR and in the scores; here they are those of the network before the task, and each class counts once. The
code leaves the pairs to an option; from which size on they are taken is ours. A reduced form as ``pcr``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from robustkd.defenses.image.streams.contrast import contrast
from robustkd.defenses.image.streams.pcr import PCR, PCRParams, proxy_loss
from robustkd.defenses.image.streams.stream import StreamRecipe, Task
from robustkd.defenses.training import Minibatch
from robustkd.lazy import F, torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import last_linear, with_penultimate

if TYPE_CHECKING:
    from torch import Tensor


class HPCRParams(PCRParams):
    """Parameters of ``hpcr``."""

    pairs_from: int = Field(32, ge=1, description="images of a minibatch from which on it is also compared among itself")
    low: float = Field(0.5625, gt=0, description="the least factor on the loss")
    high: float = Field(1.8, gt=0, description="the greatest")
    period: int = Field(500, ge=1, description="steps from one least factor to the next")
    alpha: float = Field(0.01, ge=0, description="of the distance from the old scores")
    beta: float = Field(0.5, ge=0, description="of the cross entropy of relations")


def factor(step: int, low: float, high: float, period: int) -> float:
    """s(step)."""
    return low + (high - low) * (1 - math.cos(2 * math.pi * step / period)) / 2


def relations(features: Tensor, before: Tensor, tau: float) -> Tensor:
    """The cross entropy of (M, D) old features' relations and those of (M, D) features; 0 of fewer than two."""
    if len(features) < 2:
        return features.sum() * 0
    own = torch.eye(len(features), dtype=torch.bool, device=features.device)
    old, now = (_cosines(f, f, tau).masked_fill(own, -torch.inf).log_softmax(1) for f in (before, features))
    return -(old.exp() * now.masked_fill(own, 0.0)).sum(1).mean()


def _cosines(features: Tensor, others: Tensor, tau: float) -> Tensor:
    return F.normalize(features.float(), dim=1) @ F.normalize(others.float(), dim=1).T / tau


class HPCRRecipe(StreamRecipe):
    """PCR's loss with pairs and a factor, and what is kept of the old network."""

    state: ClassVar[tuple[str, ...]] = ("steps",)
    supports_data_parallel = False  # which classes are there is said of a whole minibatch

    def __init__(self, params: HPCRParams, task: Task) -> None:
        super().__init__(params, task)
        self.steps = 0

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """All three terms; the last two are 0 in the first task."""
        p, task, x = self.params, self.task, self.images(target, batch)
        _, features = with_penultimate(task.network, x)
        proxies = last_linear(task.network.module).weight
        if len(x) >= p.pairs_from:
            present = batch.y.unique()
            points, groups = torch.cat([features, proxies[present]]), torch.cat([batch.y, present])
            pull = contrast(points, groups, p.tau, anchors=len(x))
        else:
            pull = proxy_loss(features, proxies, batch.y, p.tau)
        scores, kept = self._kept(features, proxies, batch.y, x)
        loss = factor(self.steps, p.low, p.high, p.period) * pull + p.alpha * scores + p.beta * kept
        return loss, {"loss_scores": scores, "loss_relations": kept}

    def _kept(self, features: Tensor, proxies: Tensor, labels: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The distances of the remembered images' scores and relations from those of the old network."""
        task, tau = self.task, self.params.tau
        rows = torch.isin(labels, torch.tensor(task.old, device=labels.device, dtype=labels.dtype))
        if task.before is None or not bool(rows.any()):
            return features.sum() * 0, features.sum() * 0
        with torch.no_grad():
            _, before = with_penultimate(task.before, x[rows])
            there = labels[rows].unique()
            wanted = _cosines(before, last_linear(task.before.module).weight[there], tau)
        scores = F.mse_loss(_cosines(features[rows], proxies[there], tau), wanted)
        return scores, relations(features[rows], before, tau)

    def after_step(self, metrics: Mapping[str, float]) -> None:
        """Go on in the factor's period."""
        self.steps += 1


class HPCR(PCR):
    """PCR that compares images as well, and keeps scores and relations of the old network."""

    Params = HPCRParams
    source = "reduced from Lin et al. 2023, arXiv:2309.15038"
    version = "2"  # 1 trained new classes from rows that weight decay had made 0, and chose the epoch by logits that it does not deploy

    def recipe(self, task: Task) -> StreamRecipe:
        """The three terms."""
        return HPCRRecipe(self.params, task)
