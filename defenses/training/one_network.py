"""Defenses that are one loss on one network: each can be trained on a fresh network, or on the one of a list of stages."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import ClassVar, TypeAlias

from robustkd.contracts import Defense, FitContext, Target
from robustkd.defenses.training.epochs import train
from robustkd.defenses.training.networks import fresh_network
from robustkd.defenses.training.recipe import Recipe
from robustkd.targets import ClassifierTarget

Prepared: TypeAlias = tuple[Recipe[ClassifierTarget], ClassifierTarget]
"""A loss, and the target whose weights it trains."""


class OneNetwork(Defense):
    """A defense that trains one network by one loss.

    Attributes:
        network: which of its parameters names the architecture; NAME_params has the parameters of that.
    """

    network: ClassVar[str] = "model"

    @abstractmethod
    def training(self, context: FitContext, student: ClassifierTarget) -> AbstractContextManager[Prepared]:
        """The loss, and what is trained: ``student``, or a target that holds it. What it needs meanwhile is held until the block ends.

        Args:
            context: data, seed, device and the other defenses.
            student: the network, as it is before.
        """

    def fit(self, context: FitContext) -> Target:
        """Train a fresh network; the epoch is chosen on the validation data, as ``selection`` says."""
        name = self.network
        student = fresh_network(context, getattr(self.params, name), getattr(self.params, f"{name}_params"))
        with self.training(context, student) as (recipe, trained):
            train(context, trained, recipe, self.params)
        return student
