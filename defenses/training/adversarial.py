"""What every adversarial training and robust distillation shares: find x~, then take one loss at it.

    x~ = argmax_{x' in ball(x)} inner loss          defenses/training/inner.py
    min_w  outer loss(x, x~, y)                     at w, or with ``awp`` at the worst weights nearby; ``igdm`` adds a term to it

A method is an outer loss: a subclass of ``AdversarialRecipe``. Its defense names it and the loop is run by ``AdversarialTraining``
(one network) or ``RobustDistillation`` (a student of a frozen teacher).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field

from robustkd.attacks.image.engine.ball import STEEPEST_REVISIONS
from robustkd.contracts import Defense, FitContext, ThreatModel
from robustkd.contracts.params import AddedLater
from robustkd.defenses.training.awp import AWPParams, perturbed
from robustkd.defenses.training.batches import Minibatch
from robustkd.defenses.training.distillation import Distillation, StudentParams
from robustkd.defenses.training.divergence import scaled
from robustkd.defenses.training.gradient_matching import GradientMatching, GradientMatchingParams
from robustkd.defenses.training.inner import Adversary, InnerMaximisation, TeacherInner
from robustkd.defenses.training.one_network import OneNetwork, Prepared
from robustkd.defenses.training.params import NetworkParams
from robustkd.defenses.training.recipe import Recipe
from robustkd.defenses.training.teachers import Teacher
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor

IGDM = (
    "indirect gradient matching with the (robust) teacher, beside the method's own loss: {} turns it on, {alpha: ..} weighs it"
)
AWP = "adversarial weight perturbation: {} turns it on, {gamma: .., warmup: ..} sets it"


class AdversarialParams(NetworkParams):
    """Parameters of every adversarial training."""

    inner: InnerMaximisation = Field(default_factory=InnerMaximisation, description="the examples to train on")
    awp: AWPParams | None = Field(None, description=AWP)


KLReduction: TypeAlias = Literal["batch", "batch-and-class", "tenth"]
"""How a student's divergence is averaged: a ``Reduction`` to a scalar."""


class DistillationParams(StudentParams):
    """Parameters of every student of one teacher, where the authors' code averages the divergence in one way or another."""

    kl_reduction: KLReduction = Field(
        "batch",
        description="batch, the definition; batch-and-class: KL / K, what much public code computes and its rate for sgd "
        "belongs to; tenth: KL / 10 on any data, what that code does on CIFAR-10 and CIFAR-100 alike",
    )


class RobustDistillationParams(DistillationParams):
    """Parameters of every robust distillation from one teacher."""

    inner: TeacherInner = Field(default_factory=TeacherInner, description="the examples of the adversarial branch")
    awp: AWPParams | None = Field(None, description=AWP)
    igdm: Annotated[GradientMatchingParams | None, AddedLater()] = Field(None, description=IGDM)


class AdversarialRecipe(Recipe[ClassifierTarget]):
    """An outer loss at the examples of the inner maximisation.

    Args:
        adversary: the inner maximisation.
        threat: what the deployed epoch is selected against.
        params: the defense's.

    Attributes:
        gradient_matching: the term of ``igdm``, where a method has a teacher and the campaign asks for it.
    """

    gradient_matching: GradientMatching | None = None

    def __init__(self, adversary: Adversary, threat: ThreatModel, params: Any) -> None:
        self.adversary, self.threat, self.params = adversary, threat, params

    def inner(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, ...]:
        """The solution of the inner problem, which the outer loss takes as constant: x~, and a teacher's logits if it has one."""
        return (self.adversary(target, batch),)

    @abstractmethod
    def outer(self, target: ClassifierTarget, batch: Minibatch, inner: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and scalars to log; ``target.module`` is in train mode."""

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Both levels of the min-max problem."""
        inner, awp = self.inner(target, batch), self.params.awp
        if awp is not None and batch.epoch >= awp.warmup:
            target = perturbed(target, lambda at: self._outer_and_term(at, batch, inner)[0], awp.gamma, batch.all_reduce)
        return self._outer_and_term(target, batch, inner)

    def _outer_and_term(
        self, target: ClassifierTarget, batch: Minibatch, inner: tuple[Tensor, ...]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, measured = self.outer(target, batch, inner)
        if self.gradient_matching is None:
            return loss, measured
        term = self.gradient_matching(target, batch, inner[0])
        term = scaled(term.mean(), target.num_classes, self.params.kl_reduction)
        return loss + term, measured | {"loss_igdm": term}

    def match_gradients(self, teacher: Teacher) -> None:
        """Add the term of ``igdm`` with ``teacher``, if the parameters ask for it."""
        if self.params.igdm is not None:
            self.gradient_matching = GradientMatching(teacher, self.params.igdm.alpha, self.params.epochs)


class TeacherRecipe(AdversarialRecipe):
    """An outer loss that a frozen teacher has a part in."""

    def __init__(self, teacher: Teacher, adversary: Adversary, threat: ThreatModel, params: Any) -> None:
        super().__init__(adversary, threat, params)
        self.teacher = teacher
        self.match_gradients(teacher)


class OptionallyAdversarial(Defense):
    """A defense that is trained on adversarial examples where its parameter ``inner`` asks for them."""

    @property
    def uses_threat(self) -> bool:  # type: ignore[override]
        """Whether it is trained on adversarial examples."""
        return self.params.inner is not None


class TrainedUnderAttack(Defense):
    """A defense that is trained on adversarial examples of the campaign's threat model, found by steepest steps."""

    uses_threat = True
    revisions = STEEPEST_REVISIONS


class AdversarialTraining(TrainedUnderAttack, OneNetwork):
    """A network trained on its own adversarial examples; the epoch is chosen as ``selection`` says.

    Attributes:
        recipe: the outer loss.
    """

    recipe: ClassVar[type[AdversarialRecipe]]

    @contextmanager
    def training(self, context: FitContext, student: ClassifierTarget) -> Iterator[Prepared]:
        """The outer loss under the campaign's threat model, and the network."""
        adversary = Adversary.under(self.params.inner, context.threat)
        yield self.recipe(adversary, context.threat, self.params), student


class RobustDistillation(TrainedUnderAttack, Distillation):
    """A student of a frozen teacher, trained on its own adversarial examples; the epoch is chosen as ``selection`` says.

    Attributes:
        recipe: the outer loss.
    """

    recipe: ClassVar[type[TeacherRecipe]]

    def prepare(self, context: FitContext, teacher: Teacher, student: ClassifierTarget) -> Prepared:
        """The outer loss under the campaign's threat model, and the student."""
        adversary = Adversary.under(self.params.inner, context.threat)
        return self.recipe(teacher, adversary, context.threat, self.params), student
