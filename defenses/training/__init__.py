"""What trained defenses share: the loop, its parameters, the inner maximisation, the divergences.

A defense of your own subclasses ``Recipe`` (its loss) and ``TrainParams`` (its parameters) and calls ``train``; a student of one
teacher subclasses ``DistillationRecipe`` and names it in a ``Distillation``; one that trains on adversarial examples subclasses
``AdversarialRecipe`` and names it in an ``AdversarialTraining`` or a ``RobustDistillation``.
"""

from robustkd.defenses.training.adversarial import (
    AdversarialParams,
    AdversarialRecipe,
    AdversarialTraining,
    DistillationParams,
    OptionallyAdversarial,
    RobustDistillation,
    RobustDistillationParams,
    TeacherRecipe,
    TrainedUnderAttack,
)
from robustkd.defenses.training.awp import AWPParams
from robustkd.defenses.training.batches import Minibatch
from robustkd.defenses.training.distillation import Distillation, DistillationRecipe, StudentParams
from robustkd.defenses.training.divergence import entropy, kl
from robustkd.defenses.training.epochs import train
from robustkd.defenses.training.inner import Adversary, InnerMaximisation, TeacherInner
from robustkd.defenses.training.networks import fresh_copy, fresh_network, teacher
from robustkd.defenses.training.one_network import OneNetwork, Prepared
from robustkd.defenses.training.params import NetworkParams, TrainParams
from robustkd.defenses.training.recipe import Recipe
from robustkd.defenses.training.teachers import Teacher, frozen_teacher

__all__ = [
    "AWPParams",
    "AdversarialParams",
    "AdversarialRecipe",
    "AdversarialTraining",
    "Adversary",
    "Distillation",
    "DistillationParams",
    "DistillationRecipe",
    "InnerMaximisation",
    "Minibatch",
    "NetworkParams",
    "OneNetwork",
    "OptionallyAdversarial",
    "Prepared",
    "Recipe",
    "RobustDistillation",
    "RobustDistillationParams",
    "StudentParams",
    "Teacher",
    "TeacherInner",
    "TeacherRecipe",
    "TrainParams",
    "TrainedUnderAttack",
    "entropy",
    "fresh_copy",
    "fresh_network",
    "frozen_teacher",
    "kl",
    "teacher",
    "train",
]
