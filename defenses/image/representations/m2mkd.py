"""m2mKD: module by module. Each part of the student learns to stand for a part of the teacher, inside a small network that stays as it is.

    1.  meta = L modules of one block each;  min CE(meta(x), y)                                                          ``meta_epochs``
    2.  for each i:  meta with module i replaced by the student's, H_i, and by the teacher's between linear layers, T_i
        min (1 - alpha) CE(H_i(x), y)  +  alpha tau^2 KL( sg(T_i(x)); tau || H_i(x); tau )     over the student's module   ``epochs``
        min CE(T_i(x), y)                                                                      over the linear layers
    3.  the student's modules one behind the other;  min CE(S(x), y)                                                     ``finish_epochs``

The modules are equal shares of the blocks of a transformer; the first has the patches as well, the last the norm and the last layer. The
meta model is as wide as the student, so that its modules fit into it as they are; the linear layers are between its width and the
teacher's.

Good where a teacher and a student are so different that one loss at the end says little. Controls: ``alpha: 0``, modules that learn the
labels alone, and ``kd`` from the same teacher.

Source: Lo et al.: m2mKD: module-to-module knowledge distillation for modular transformers (TMLR 2024), arXiv:2402.16918; the authors'
code was read (deep_incubation/main.py, losses.py). From the authors: the meta model, the two hybrids and the loss of the student's
module, with alpha 0.5 and tau 1. From us: the linear layers learn the labels, so that the teacher's module is understood; the divergence
is the mean over the samples, where theirs is divided by the number of classes too; any ``tiny-vit`` for their modular networks, and the
sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pydantic import Field

from robustkd.contracts import Defense, FitContext, ModelName, Target, TargetRef, UsageError
from robustkd.contracts.params import ModelParams
from robustkd.defenses.image.representations.dmae import require_same_patches
from robustkd.defenses.image.representations.masking import transformer
from robustkd.defenses.training import Minibatch, Recipe, fresh_network, frozen_teacher, kl
from robustkd.defenses.training.auxiliary import with_auxiliary
from robustkd.defenses.training.networks import seeded_init
from robustkd.defenses.training.stages import LabelRecipe, Stage, StagedParams, finishing, run_stages
from robustkd.lazy import F, nn
from robustkd.models.vit import TinyViTNetwork
from robustkd.targets import ClassifierTarget, frozen

if TYPE_CHECKING:
    from torch import Tensor


class M2MKDParams(StagedParams):
    teacher: TargetRef = Field(description="another defense whose network is a tiny-vit")
    student: ModelName = Field("tiny-vit", description="the student's architecture: tiny-vit")
    student_params: ModelParams = Field(default_factory=dict)
    modules: int = Field(2, ge=2, description="L, into how many both networks are divided")
    meta_epochs: int = Field(5, ge=1, description="passes over the training data in which the meta model learns")
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the teacher's module; the labels get the rest")
    temperature: float = Field(1.0, gt=0, description="tau, of both hybrids")


class Divided:
    """A transformer as L modules: equal shares of its blocks, with the patches before the first and the last layer behind the last.

    Args:
        network: its weights are shared.
        count: L, at most as many as it has blocks.

    Raises:
        UsageError: it has fewer blocks.
    """

    def __init__(self, network: TinyViTNetwork, count: int) -> None:
        blocks = network.layers
        if len(blocks) < count:
            raise UsageError(
                f"a network of {len(blocks)} blocks cannot be divided into {count} modules",
                fix="give fewer modules, or a larger depth",
            )
        ends = [round(len(blocks) * number / count) for number in range(count + 1)]
        self.network, self.last = network, count - 1
        self._blocks = [blocks[first:end] for first, end in pairwise(ends)]

    def __call__(self, number: int, h: Tensor) -> Tensor:
        """What module ``number`` makes of tokens (B, T, width); the first takes images (B, C, H, W), the last gives logits (B, K)."""
        network = self.network
        if number == 0:
            h = network.tokens(network.normalise(h))
        for block in self._blocks[number]:
            h = block(h)
        return network.linear(network.norm(h).mean(1)) if number == self.last else h

    def parts(self, number: int) -> list[nn.Module]:
        """What module ``number`` is made of."""
        network = self.network
        first: list[nn.Module] = [network.embed, nn.ParameterList([network.positions])] if number == 0 else []
        last: list[nn.Module] = [network.norm, network.linear] if number == self.last else []
        return [*first, *self._blocks[number], *last]


def hybrid(meta: Divided, number: int, module: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """(B, K) logits of the meta model with ``module`` in the place of its module ``number``."""
    h = images
    for before in range(number):
        h = meta(before, h)
    h = module(h)
    for behind in range(number + 1, meta.last + 1):
        h = meta(behind, h)
    return h


class M2MKDRecipe(Recipe[ClassifierTarget]):
    """One module of the student beside that of the teacher.

    Args:
        meta, teacher: frozen.
        student: the network inside the trained module.
        number: which module.
        params: the defense's.
    """

    def __init__(self, meta: Divided, teacher: Divided, student: Divided, number: int, params: M2MKDParams) -> None:
        self.meta, self.teacher, self.student, self.number, self.params = meta, teacher, student, number, params

    def loss(self, target: Any, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """(1 - alpha) CE(H) + alpha tau^2 KL(T || H) + CE(T), the last for the linear layers alone."""
        p, tau, parts = self.params, self.params.temperature, target.module.parts

        def between(h: Tensor) -> Tensor:
            return parts["out"](self.teacher(self.number, parts["into"](h)))

        theirs = hybrid(self.meta, self.number, between, batch.x)
        mine = hybrid(self.meta, self.number, lambda h: self.student(self.number, h), batch.x)
        soft = kl(theirs.detach(), mine, teacher_temperature=tau, student_temperature=tau, reduction="batch")
        loss = (1 - p.alpha) * F.cross_entropy(mine, batch.y) + p.alpha * tau**2 * soft
        return loss + F.cross_entropy(theirs, batch.y), {"loss_module": soft}


class M2MKD(Defense):
    """A student whose modules each learnt of one of the teacher's."""

    Params = M2MKDParams
    source = "Lo et al. 2024, arXiv:2402.16918"

    def fit(self, context: FitContext) -> Target:
        """Train all stages; the epoch of the last is chosen by validation accuracy.

        Raises:
            UsageError: a network has no patches, others than the teacher, or fewer blocks than there are to be modules.
        """
        p = self.params
        student = fresh_network(context, p.student, p.student_params)
        with frozen_teacher(context, p.teacher, p) as teacher:
            run_stages(context, self._stages(context, student, teacher.target))
        return student

    def _stages(self, context: FitContext, student: ClassifierTarget, teacher: Target) -> Iterator[Stage]:
        p = self.params
        own, theirs = transformer(student, "m2mkd"), transformer(teacher, "m2mkd")
        require_same_patches(own.positions.shape[1], theirs.positions.shape[1], "m2mkd")
        mine, known = Divided(own, p.modules), Divided(theirs, p.modules)
        meta = fresh_network(context, p.student, {**p.student_params, "depth": p.modules}, role="meta")
        brief = p.model_copy(update={"epochs": p.meta_epochs, "milestones": None})
        yield Stage("meta", meta, LabelRecipe(), brief)
        inside = Divided(transformer(meta, "m2mkd"), p.modules)
        with frozen(meta.module):
            for number in range(p.modules):
                ends = linear_ends(context, number, mine, known)
                trained = with_auxiliary(student, **ends)
                recipe = M2MKDRecipe(inside, known, mine, number, p)
                parts = partial(trained_parts, mine, number, ends)
                yield Stage(f"module-{number + 1}", trained, recipe, p.with_last_epoch(), parts)
        yield finishing(student, p)


def trained_parts(student: Divided, number: int, ends: Mapping[str, nn.Module]) -> list[nn.Module]:
    """The student's module, and the linear layers around the teacher's."""
    return [*student.parts(number), *ends.values()]


def linear_ends(context: FitContext, number: int, student: Divided, teacher: Divided) -> dict[str, nn.Module]:
    """The linear layers before and behind the teacher's module; none where it takes images or gives logits."""
    own, theirs = (one.network.positions.shape[2] for one in (student, teacher))
    with seeded_init(context, f"ends/{number}"):
        into = nn.Identity() if number == 0 else nn.Linear(own, theirs)
        out = nn.Identity() if number == teacher.last else nn.Linear(theirs, own)
    return {"into": into, "out": out}
