"""OnPro: the mean of each class in a minibatch is its prototype; prototypes are kept apart, and confused classes are mixed more often.

    min  CE(mixed images)  +  L_ins(new) + L_ins(remembered)  +  L_pro(new) + L_pro(remembered)

    L_ins: images, turned by 0, 90, 180 and 270 degrees, in two views; those of one class and one turn are a group (``contrast``, T = 0.07)
    L_pro: m_c, the mean projection of class c in a view; the two views of a class are a group (``contrast``, T = 0.5)
    mixed: (1 - a) x_i + a x_j.   A share of ``base_rate`` of the images is mixed with any other, with a ~ U(0, ``upper``) in ``mix_share``
           of the cases and a = 0 else; the rest are pairs of two classes, drawn with the probability
           softmax over pairs of 1 / ||m_c - m_d||,  a ~ Beta(``alpha``, ``alpha``)                       prototypical feedback

A step draws ``memory_batch`` remembered images beside its minibatch of new ones. The projection is an MLP on what the last linear layer is
given; it is trained in all tasks and not deployed.

Good when a task is seen once. Controls: ``feedback: false`` and ``prototypes: false`` take out either idea.

Source: Wei et al.: Online prototype learning for online continual learning (ICCV 2023), arXiv:2308.00301; the authors' code was read
(weilllllls/OnPro, train.py, modules/OPE.py, modules/APF.py) and has the values above. It trains by Adam 5e-4 in one pass, in batches of 10
beside 64, with a memory of 200 by reservoir: these are not the defaults here. There the memory also holds images of the running task, and
the cross entropy is over it alone after the first one; pairs of classes get rounded numbers of images; the instance contrast also looks at
a slice of the features; the views are random resized crops. Here the memory is of the tasks before, the cross entropy is over new and
remembered images, pairs are drawn, the slice is left out, and the second view is a shifted and mirrored copy: a reduced form.
``inner`` is ours.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from robustkd.contracts import Arrays, FitContext
from robustkd.defenses.image.streams.contrast import two_views
from robustkd.defenses.image.streams.stream import (
    Beside,
    StreamDefense,
    StreamParams,
    StreamRecipe,
    Task,
    step_rng,
    together,
)
from robustkd.defenses.training import Minibatch
from robustkd.defenses.training.augment import crop_flip
from robustkd.defenses.training.networks import seeded_init
from robustkd.lazy import F, nn, torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import last_linear, with_penultimate

if TYPE_CHECKING:
    from torch import Tensor

_NEAREST = 1e-3
"""Prototypes count as at least so far apart, so that a probability is a number where two are one."""


class OnProParams(StreamParams):
    """Parameters of ``onpro``."""

    remember: Literal["herding", "reservoir"] = Field(
        "reservoir",
        description="which images: any of the stream at random, or as many of each class, those nearest to its mean",
    )
    memory_batch: int = Field(64, ge=1, description="remembered images in a step")
    prototypes: bool = Field(True, description="whether prototypes are kept apart")
    feedback: bool = Field(True, description="whether classes are mixed by how near their prototypes are; else any two images")
    instance_temperature: float = Field(0.07, gt=0, description="of L_ins")
    prototype_temperature: float = Field(0.5, gt=0, description="of L_pro")
    base_rate: float = Field(0.75, ge=0, le=1, description="share of the images that are mixed with any other")
    mix_share: float = Field(0.6, ge=0, le=1, description="share of those of which a is not 0")
    upper: float = Field(0.6, ge=0, le=1, description="the largest a of those")
    alpha: float = Field(0.4, gt=0, description="of the Beta distribution of pairs of classes")
    width: int = Field(128, ge=1, description="outputs of the projection")


def prototypes(points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(C, D) the mean of (B, D) points of each class that (B,) labels name, of length 1, and (C,) these classes."""
    present, place = labels.unique(return_inverse=True)
    sums = torch.zeros(len(present), points.shape[1], device=points.device, dtype=points.dtype).index_add(0, place, points)
    return F.normalize(sums, dim=1), present


def pair_probabilities(means: np.ndarray) -> np.ndarray:
    """(P,) the probability of each pair of (C, D) prototypes, in the order of ``combinations``: near ones are likelier."""
    apart = [max(_NEAREST, float(np.linalg.norm(means[i] - means[j]))) for i, j in combinations(range(len(means)), 2)]
    powers = np.exp(1 / np.array(apart) - 1 / min(apart))
    found: np.ndarray = powers / powers.sum()
    return found


class OnProRecipe(StreamRecipe):
    """The cross entropy of mixed images, and contrasts of images and of prototypes."""

    supports_data_parallel = False  # prototypes are of whole minibatches

    def __init__(self, params: OnProParams, task: Task, device: torch.device) -> None:
        super().__init__(params, task)
        self._remembered = None if task.remembered is None else Beside(task.remembered, device)

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """All terms."""
        p, count = self.params, len(batch.x)
        pool = batch
        if self._remembered is not None:
            pool = together(batch, self._remembered.drawn(batch, p.memory_batch, "onpro/memory"))
        x = self.images(target, pool)
        other = crop_flip(x, pool.rng("onpro/view"))
        sides = [slice(0, count)] + ([slice(count, None)] if len(x) > count else [])
        instances = sum((self._instances(x[side], other[side], pool.y[side]) for side in sides), x.new_zeros(()))
        first, second = self._projected(x), self._projected(other)
        apart = sum((self._apart(first[side], second[side], pool.y[side]) for side in sides), x.new_zeros(()))
        mixed, a, partners = self._mixed(x, pool, (first + second).detach())
        logits = target(mixed)
        hard = (1 - a) * F.cross_entropy(logits, partners[0], reduction="none")
        labels = (hard + a * F.cross_entropy(logits, partners[1], reduction="none")).mean()
        loss = labels + instances + (apart if p.prototypes else 0.0)
        return loss, {"loss_instances": instances.detach(), "loss_prototypes": apart.detach()}

    def _projected(self, x: Tensor) -> Tensor:
        """(B, width) of length 1."""
        _, features = with_penultimate(self.task.network, x)
        return F.normalize(self.task.auxiliary["projection"](features).float(), dim=1)

    def _instances(self, x: Tensor, other: Tensor, labels: Tensor) -> Tensor:
        """L_ins of images and their other view."""
        turns = range(4) if x.shape[-2] == x.shape[-1] else range(0, 4, 2)
        groups = torch.cat([4 * labels + turn for turn in turns])
        first, second = (torch.cat([torch.rot90(view, turn, (2, 3)) for turn in turns]) for view in (x, other))
        return two_views(self._projected(first), self._projected(second), groups, self.params.instance_temperature)

    def _apart(self, first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
        """L_pro of the projections of two views."""
        (one, classes), (two, _) = prototypes(first, labels), prototypes(second, labels)
        return two_views(one, two, classes, self.params.prototype_temperature)

    def _mixed(self, x: Tensor, pool: Minibatch, points: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Mixed images, the weight a of each one's second half, and the labels of both."""
        p, rng, count = self.params, step_rng(pool, "onpro/mix"), len(x)
        base = count if not p.feedback else round(p.base_rate * count)
        first = rng.permutation(count)[:base]
        second = rng.permutation(count)[:base]
        a = rng.uniform(0, p.upper, base) * (rng.random(base) < p.mix_share)
        means, classes = prototypes(points, pool.y)
        if base < count and len(classes) > 1:
            labels, names = pool.y.cpu().numpy(), classes.cpu().numpy()
            chances = pair_probabilities(means.cpu().numpy().astype(np.float64))
            pairs = np.array(list(combinations(range(len(names)), 2)))[rng.choice(len(chances), count - base, p=chances)]
            drawn = np.array([[rng.choice(np.flatnonzero(labels == names[side])) for side in pair] for pair in pairs])
            first, second = np.concatenate([first, drawn[:, 0]]), np.concatenate([second, drawn[:, 1]])
            a = np.concatenate([a, rng.beta(p.alpha, p.alpha, count - base)])
        one, two = (torch.from_numpy(np.ascontiguousarray(rows)).to(x.device) for rows in (first, second))
        weight = torch.tensor(a, dtype=x.dtype, device=x.device)
        images = torch.lerp(x[one], x[two], weight.view(-1, 1, 1, 1))
        return images, weight, [pool.y[one], pool.y[two]]


class OnPro(StreamDefense):
    """A network that learns its classes in tasks, and keeps their prototypes apart."""

    Params = OnProParams
    source = "reduced from Wei et al. 2023, arXiv:2308.00301"
    version = "2"  # 1 trained new classes from rows that weight decay had made 0
    mixes_memory = False

    def recipe(self, task: Task) -> StreamRecipe:
        """The cross entropy and both contrasts."""
        return OnProRecipe(self.params, task, next(task.network.module.parameters()).device)

    def auxiliary(self, context: FitContext[Arrays], network: ClassifierTarget) -> dict[str, nn.Module]:
        """The projection."""
        width = last_linear(network.module).in_features
        with seeded_init(context, "projection"):
            return {"projection": nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.params.width))}
