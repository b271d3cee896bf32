"""An attack that is a function in a file of the user's own: ``{kind: code, code: my_attack.py:attack}``.

The function is given what its arguments ask for, by their names, after the model, the images and the labels:

    def attack(model, x, y, eps): ...
    def attack(model, x, y, *, eps, norm, goals, seed, steps=40): ...

It returns the adversarial images. The platform counts the passes, measures each image and classifies it again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.adapters.counting import CountedModel, PeerAttack
from robustkd.contracts import AttackError, Batch, Target, ThreatModel, Traits, UsageError
from robustkd.contracts.threat import Norm
from robustkd.lazy import torch
from robustkd.targets.code_params import CodeParams

if TYPE_CHECKING:
    from torch import Tensor

_POSITIONAL = 3
"""Model, images and labels."""


class FunctionParams(CodeParams):
    minimises: Norm | None = Field(
        None, description="the norm that it minimises, where it looks for the nearest adversarial image and knows no eps"
    )
    gradients: bool = Field(True, description="whether it takes gradients of the model; false for a black-box attack")


class FunctionAttack(PeerAttack):
    """A function ``(model, x, y, eps[, norm, goals, seed, ..]) -> x_adv`` of the user's own.

    ``model`` is (B, C, H, W) -> (B, K) logits, in evaluation mode; ``x`` lies in [0, 1]; ``goals`` are the classes to reach, None
    where the attack is untargeted. Torch's generator is seeded before each call. Of a target that rejects inputs the model has one
    output more, the last, which is the largest where the input is rejected.
    """

    Params = FunctionParams
    norms = ("linf", "l2", "l1", "l0")
    goals = ("untargeted", "targeted")
    knows_rejection = True
    source = "the user's own function"
    _function: Callable[..., Any] | None = None

    @classmethod
    def of(cls, function: Callable[..., Any], **kwargs: Any) -> Self:
        """The attack that a function is which is at hand.

        Raises:
            UsageError: it cannot be called with a model, images and labels.
        """
        try:
            inspect.signature(function).bind_partial(*[None] * _POSITIONAL)
        except TypeError:
            raise UsageError(
                f"{getattr(function, '__name__', 'the function')} takes no three arguments",
                fix="write an attack as a function (model, x, y, eps), which returns the adversarial images",
            ) from None
        except ValueError:  # of a builtin nothing is known
            pass
        name = getattr(function, "__name__", type(function).__name__)
        reference = f"{getattr(function, '__module__', None) or 'own'}:{name}"
        made = cls(FunctionParams.model_construct({"kwargs"} if kwargs else set(), code=reference, kwargs=kwargs))
        made._function = function
        made.name = name
        return made

    @property
    @override
    def traits(self) -> Traits:
        traits, minimises = replace(super().traits, gradients=self.params.gradients), self.params.minimises
        return replace(traits, kind="minimum-norm", norms=(minimises,)) if minimises else traits

    def files(self) -> list[Path]:
        """The function's source, which is part of the identity."""
        return [] if self._function else self.params.files()

    def drive(self, model: CountedModel, batch: Batch, threat: ThreatModel, seed: int) -> Tensor:
        """Call the function with what its arguments ask for."""
        function = self._function or self.params.function()
        offered = {"eps": threat.eps, "epsilon": threat.eps, "norm": threat.norm, "goals": batch.goals, "seed": seed}
        found = function(model, batch.inputs.clone(), batch.labels, **_asked_for(function, offered), **self.params.kwargs)
        found = getattr(found, "adversarial", found)  # of an AttackResult
        adversarial = torch.as_tensor(found).to(batch.inputs)
        if adversarial.shape != batch.inputs.shape:
            raise AttackError(
                f"{self.name} returned {tuple(adversarial.shape)} for images {tuple(batch.inputs.shape)}",
                fix="return the adversarial images, one for each image and in their order",
            )
        return adversarial

    def _inside(self, found: Tensor, target: Target, batch: Batch, threat: ThreatModel) -> Tensor:
        return found  # it is measured, and not put right: what is outside is no adversarial image


def _asked_for(function: Callable[..., Any], offered: Mapping[str, object]) -> dict[str, object]:
    try:
        arguments = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # of a function that is written in C
        return {}
    every = any(argument.kind is argument.VAR_KEYWORD for argument in arguments)
    names = {argument.name for argument in arguments[_POSITIONAL:]}
    return {name: value for name, value in offered.items() if name in names or (every and name != "epsilon")}
