"""Fresh networks, initialised from the training's seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from robustkd.contracts import FitContext, Samples, UsageError
from robustkd.contracts.random import preserved_rng, seed_torch
from robustkd.defenses.training.seeding import derived_seed
from robustkd.targets import ClassifierTarget
from robustkd.targets.logits import as_logits


@contextmanager
def seeded_init(context: FitContext[Samples], role: str) -> Iterator[None]:
    """Modules that are made here draw their weights from the training's seed; torch's generators are left as found."""
    with preserved_rng(context.device):
        seed_torch(derived_seed(context.seed, f"initialise/{role}"))
        yield


def fresh_network(context: FitContext, model: str, params: Mapping[str, Any], *, role: str = "student") -> ClassifierTarget:
    """A model plug-in by name for the context's images; two roles of one training start from different weights.

    Raises:
        UsageError: ``params`` are not the model's.
    """
    with seeded_init(context, role):
        try:
            return ClassifierTarget.from_model(
                model, dict(params), input_shape=context.input_shape, num_classes=context.num_classes
            )
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UsageError(
                f"model '{model}' does not take its parameters: {where}: {first['msg']}", fix=f"robustkd describe model {model}"
            ) from error


def fresh_copy(context: FitContext, target: ClassifierTarget, *, role: str = "student") -> ClassifierTarget:
    """The architecture of ``target`` with weights of its own."""
    with seeded_init(context, role):
        return target.untrained()


def teacher(context: FitContext, name: str) -> ClassifierTarget:
    """The finished target called ``name``, on the device, in logits: where it returns probabilities, their logarithm.

    Raises:
        UsageError: it is no classifier of the campaign's images and classes.
    """
    found = context.target(name, ClassifierTarget)
    if found.num_classes != context.num_classes or found.input_shape != tuple(context.input_shape):
        raise UsageError(
            f"teacher '{name}' maps {found.input_shape} to {found.num_classes} classes, "
            f"the campaign's data are {tuple(context.input_shape)} with {context.num_classes}",
            fix="name a teacher of the same data",
        )
    return as_logits(found.to(context.device), f"teacher '{name}'")
