"""Hybrid Distill: relations of tokens from a network of masked images, and the last features from a supervised one.

    1.  min  relations * mean_l [ KL(R_T(l) || R_S(l)) + KL(V_T(l) || V_S(l)) ]  +  features * smooth-L1( g(s_last), u_last )
    2.  min  CE(f(x), y)                                                          as ``mae``

    R = softmax(Q K^T / sqrt(d)),   V = softmax(V V^T / sqrt(d)),  of all layers but the last, over the tokens of whole images

T is the teacher of masked images, u that of labels; g is a linear layer that is not deployed. Layers are matched by their share of the
depth, and heads are joined, so that both networks may have other numbers of them.

Good to ask which of two teachers a student's robustness comes from: one of them may be robust. Controls: ``relations: 0`` and
``features: 0``, each teacher by itself.

Source: Shi et al.: Hybrid distillation: connecting masked autoencoders with contrastive learners (ICLR 2024), arXiv:2306.15876; abstract
and README were read, since the authors' code is not public. The progressive masking of redundant tokens is left out, the second teacher is
one of labels where the paper prefers a contrastive one, and joined heads are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from pydantic import Field

from robustkd.contracts import Defense, FitContext, ModelName, Target, TargetRef
from robustkd.contracts.params import ModelParams
from robustkd.defenses.image.representations.dmae import require_same_patches
from robustkd.defenses.image.representations.masking import transformer
from robustkd.defenses.training import Minibatch, Recipe, fresh_network, frozen_teacher
from robustkd.defenses.training.auxiliary import with_auxiliary
from robustkd.defenses.training.divergence import relative_entropy
from robustkd.defenses.training.networks import seeded_init
from robustkd.defenses.training.stages import Stage, StagedParams, finishing, run_stages
from robustkd.lazy import F, nn, torch
from robustkd.models.vit import TinyViTNetwork
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class HybridDistillParams(StagedParams):
    relation_teacher: TargetRef = Field(description="T, whose token relations are matched, such as one of mae")
    feature_teacher: TargetRef = Field(description="u, whose last features are matched, trained on labels")
    student: ModelName = Field("tiny-vit", description="the student's architecture: tiny-vit")
    student_params: ModelParams = Field(default_factory=dict)
    relations: float = Field(1.0, ge=0, description="weight of the token relations")
    features: float = Field(1.0, ge=0, description="weight of the last features")


def attended(network: TinyViTNetwork, images: Tensor) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]:
    """(B, N, width) queries, keys and values of each block, all heads side by side, and the tokens behind the last norm."""
    tokens, found = network.tokens(network.normalise(images)), []
    for block in network.layers:
        queries, keys, values = block.attention.qkv(block.norm1(tokens)).chunk(3, 2)
        found.append((queries, keys, values))
        tokens = block(tokens)
    last: Tensor = network.norm(tokens)
    return found, last


def relation(first: Tensor, second: Tensor) -> Tensor:
    """(B, N, N) logarithms of softmax(first second^T / sqrt(d)), of (B, N, d) each."""
    return (first @ second.transpose(1, 2) / first.shape[2] ** 0.5).log_softmax(2)


def relation_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """The mean over samples and rows of KL(teacher || student), of (B, N, N) logarithms."""
    return relative_entropy(teacher.flatten(0, 1), student.flatten(0, 1)).mean()


class HybridDistillRecipe(Recipe[ClassifierTarget]):
    """Relations of the one teacher, features of the other."""

    def __init__(self, student: ClassifierTarget, relations: Target, features: Target, params: HybridDistillParams) -> None:
        self.student, self.relations, self.features, self.params = student, relations, features, params

    def loss(self, target: Any, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """relations * KL + features * smooth-L1."""
        p = self.params
        own, theirs, other = (transformer(one, "hybrid-distill") for one in (self.student, self.relations, self.features))
        mine, last = attended(own, batch.x)
        with torch.no_grad():
            wanted, _ = attended(theirs, batch.x)
            _, wanted_last = attended(other, batch.x)
        terms = []
        for place, (queries, keys, values) in enumerate(mine[:-1]):
            there = wanted[min(len(wanted) - 1, round((place + 1) * len(wanted) / len(mine)) - 1)]
            terms.append(relation_divergence(relation(there[0], there[1]), relation(queries, keys)))
            terms.append(relation_divergence(relation(there[2], there[2]), relation(values, values)))
        related = 2 * torch.stack(terms).mean() if terms else last.new_zeros(())
        distance = F.smooth_l1_loss(target.module.parts["projection"](last), wanted_last)
        return p.relations * related + p.features * distance, {"loss_relations": related, "loss_features": distance}


class HybridDistill(Defense):
    """A student of two teachers' features."""

    Params = HybridDistillParams
    source = "Shi et al. 2024, arXiv:2306.15876"

    def fit(self, context: FitContext) -> Target:
        """Train both stages; the epoch of the second is chosen by validation accuracy.

        Raises:
            UsageError: a network has no patches, or a teacher has others.
        """
        p = self.params
        student = fresh_network(context, p.student, p.student_params)
        with ExitStack() as stack:
            names = (p.relation_teacher, p.feature_teacher)
            teachers = [stack.enter_context(frozen_teacher(context, name, p)).target for name in names]
            run_stages(context, self._stages(context, student, *teachers))
        return student

    def _stages(self, context: FitContext, student: ClassifierTarget, relations: Target, features: Target) -> Iterator[Stage]:
        p = self.params
        own, *others = (transformer(one, "hybrid-distill") for one in (student, relations, features))
        for other in others:
            require_same_patches(own.positions.shape[1], other.positions.shape[1], "hybrid-distill")
        with seeded_init(context, "projection"):
            projection = nn.Linear(own.positions.shape[2], others[1].positions.shape[2])
        trained = with_auxiliary(student, projection=projection)
        recipe = HybridDistillRecipe(student, relations, features, p)
        yield Stage("features", trained, recipe, p.with_last_epoch())
        yield finishing(student, p)
