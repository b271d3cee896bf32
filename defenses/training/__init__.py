"""What trained defenses share: the loop, its parameters, the inner maximisation, the divergences.

A defense of your own subclasses ``Recipe`` (its loss) and ``TrainParams`` (its parameters) and calls ``train``.
"""

from robustkd.defenses.training.batches import Minibatch
from robustkd.defenses.training.divergence import entropy, kl
from robustkd.defenses.training.inner import Adversary, InnerMaximisation
from robustkd.defenses.training.loop import train
from robustkd.defenses.training.networks import fresh_copy, fresh_network, teacher
from robustkd.defenses.training.params import NetworkParams, TrainParams
from robustkd.defenses.training.recipe import Recipe

__all__ = [
    "Adversary",
    "InnerMaximisation",
    "Minibatch",
    "NetworkParams",
    "Recipe",
    "TrainParams",
    "entropy",
    "fresh_copy",
    "fresh_network",
    "kl",
    "teacher",
    "train",
]
