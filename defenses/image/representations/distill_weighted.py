"""DistillNearest and DistillWeighted: of several trained networks, which should teach a task with few labels, and how much?

    rho_m = Spearman correlation of (1 - corr(f_m(x_i), f_m(x_j)))_{i < j} with the same of the labels' one-hot vectors
    alpha_m = max(rho_m, 0)^p / sum_m max(rho_m, 0)^p             nearest: 1 for the largest, 0 for the others

    min_S  lambda * CE(S(x), y)  +  (1 - lambda) * sum_m alpha_m * KL(T_m(x) || S_m(x))

f_m is what the last linear layer of source T_m is given, on ``compared`` training images; S_m is a head for source m on the student's
features, which is dropped afterwards. Where no source correlates with the labels, all count alike.

Good to choose among teachers without training a student of each. One of them may be robust: is it chosen, and does that help? Control:
``power: 0``, all sources alike.

Source: Borup, Phoo, Hariharan: Distilling from similar tasks for transfer learning on a budget (ICCV 2023), arXiv:2304.12314; abstract and
README were read, the form of the weights is from memory. The similarity is PARC: Bolya, Mittapalli, Hoffman: Scalable diverse model
selection for accessible transfer learning (NeurIPS 2021), without its reduction to a few principal components. The sources have the
campaign's classes here; in the paper they have their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from robustkd.contracts import Defense, FitContext, ModelName, Target, TargetRef
from robustkd.contracts.params import ModelParams
from robustkd.defenses.training import Minibatch, Recipe, Teacher, TrainParams, fresh_network, frozen_teacher, kl, train
from robustkd.defenses.training.auxiliary import with_auxiliary
from robustkd.defenses.training.networks import seeded_init
from robustkd.lazy import F, nn, torch
from robustkd.scoring.ranks import rank_correlation
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import last_linear, with_penultimate

if TYPE_CHECKING:
    from torch import Tensor


class DistillNearestParams(TrainParams):
    teachers: tuple[TargetRef, ...] = Field(min_length=2, description="the sources: other defenses")
    student: ModelName = Field(description="the student's architecture: a model plug-in")
    student_params: ModelParams = Field(default_factory=dict)
    label_weight: float = Field(0.2, ge=0, le=1, description="lambda, weight of the labels; the sources get the rest")
    compared: int = Field(500, ge=3, description="training images at most by which the sources are compared")


class DistillWeightedParams(DistillNearestParams):
    power: float = Field(1.0, ge=0, description="p: 0 weighs all sources alike, a large one takes the nearest alone")


def similarity(features: Tensor, labels: Tensor) -> float:
    """rho of (N, D) features and (N,) labels, in [-1, 1]; 0 where all features, or all labels, are alike."""
    upper = torch.triu_indices(len(features), len(features), 1)
    distances = [1 - _correlations(one)[upper[0], upper[1]] for one in (features, F.one_hot(labels))]
    return rank_correlation(distances[0].numpy(), distances[1].numpy())


def _correlations(rows: Tensor) -> Tensor:
    """(N, N) Pearson correlations of (N, D), computed on the CPU in double precision; of a constant row they are 0."""
    rows = rows.detach().cpu().double()
    return (unit := F.normalize(rows - rows.mean(1, keepdim=True), dim=1)) @ unit.T


def weights_of(similarities: Sequence[float], power: float) -> list[float]:
    """alpha; equal where no source is similar."""
    best = max(similarities)
    if best <= 0:
        return [1 / len(similarities)] * len(similarities)
    # Divided by the best first, so that no power makes all of them 0.
    raised = [(max(value, 0.0) / best) ** power for value in similarities]
    return [value / sum(raised) for value in raised]


class WeightedRecipe(Recipe[ClassifierTarget]):
    """Labels, and each source's divergence from its head by its weight."""

    def __init__(
        self, student: ClassifierTarget, teachers: Sequence[Teacher], weights: Sequence[float], label_weight: float
    ) -> None:
        self.student, self.teachers, self.weights, self.label_weight = student, teachers, weights, label_weight

    def loss(self, target: Any, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """lambda CE + (1 - lambda) sum_m alpha_m KL_m."""
        logits, features = with_penultimate(self.student, batch.x)
        heads = target.module.parts["heads"]
        soft = torch.stack(
            [
                weight * kl(teacher.clean(batch), head(features), reduction="batch")
                for weight, teacher, head in zip(self.weights, self.teachers, heads, strict=True)
            ]
        ).sum()
        return self.label_weight * F.cross_entropy(logits, batch.y) + (1 - self.label_weight) * soft, {"loss_soft": soft}


class DistillWeighted(Defense):
    """A student of several sources, weighed by how their features fit the labels."""

    Params: ClassVar[type[DistillNearestParams]] = DistillWeightedParams
    source = "Borup et al. 2023, arXiv:2304.12314; Bolya et al. 2021, arXiv:2111.06977"

    def weights(self, similarities: Sequence[float]) -> list[float]:
        """alpha of the sources."""
        return weights_of(similarities, self.params.power)

    def fit(self, context: FitContext) -> Target:
        """Compare the sources on training images, then distil; the epoch is chosen by validation accuracy. The log has the weights."""
        p = self.params
        student = fresh_network(context, p.student, p.student_params)
        count = min(p.compared, len(context.train))
        images = torch.from_numpy(context.train.unit()[:count]).to(context.device)
        labels = torch.tensor(context.train.labels[:count], dtype=torch.int64)
        with ExitStack() as stack:
            teachers = [stack.enter_context(frozen_teacher(context, name, p)) for name in p.teachers]
            with torch.no_grad():
                found = [similarity(with_penultimate(one.target, images)[1], labels) for one in teachers]
            weights = self.weights(found)
            with seeded_init(context, "heads"):
                features = last_linear(student.module).in_features
                heads = nn.ModuleList(nn.Linear(features, context.num_classes) for _ in teachers)
            recipe = WeightedRecipe(student, teachers, weights, p.label_weight)
            train(context, with_auxiliary(student, heads=heads), recipe, p)
        return student


class DistillNearest(DistillWeighted):
    """A student of the one source whose features fit the labels best."""

    Params = DistillNearestParams

    def weights(self, similarities: Sequence[float]) -> list[float]:
        """1 for the first of the most similar, 0 for the others."""
        best = max(range(len(similarities)), key=lambda place: similarities[place])
        return [float(place == best) for place in range(len(similarities))]
