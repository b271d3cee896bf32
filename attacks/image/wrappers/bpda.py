"""BPDA around any attack: stages that cannot be differentiated lend another function's gradient.

    forward:   f = f_k . .. f_i .. . f_1                 backward:   f_i  replaced by  g_i ~ f_i

Without it an attack on a network that quantises, compresses or thresholds its input has no gradient to follow, and the network
looks robust. With g_i the identity this is the straight-through estimator.

With ``automatic`` such stages are found by themselves: see ``robustkd.targets.automatic_surrogates``.

Good where the stage resembles its stand-in. Where it does not, the gradient points elsewhere and the number is too high;
where the stage rounds, steps that are too small are rounded away.

Source: Athalye, Carlini, Wagner: Obfuscated gradients give a false sense of security (ICML 2018), section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, PrivateAttr, TypeAdapter, ValidationInfo, model_validator

from robustkd import plugins
from robustkd.attacks.image.wrappers.wrapper import Wrapper, WrapperParams
from robustkd.contracts import CampaignPath, Capabilities, Capability, Target, TargetError
from robustkd.plugins.sources import source_files
from robustkd.targets.code import function_by_reference, source_file
from robustkd.targets.surrogate import Surrogate, backward_surrogates, declared_surrogates

if TYPE_CHECKING:
    from torch import Tensor


def identity(inputs: Tensor) -> Tensor:
    """The surrogate of a stage that returns nearly what it was given."""
    return inputs


class BPDAParams(WrapperParams):
    """The attack that is wrapped, and the surrogates of the stages without a useful gradient."""

    surrogates: dict[str, str] = Field(
        default_factory=dict,
        description="submodule -> its surrogate: 'identity', or a function as package.module:function or path/to/file.py:function "
        "beside the campaign. Beside these, every stage of the target that declares a surrogate is given its own",
    )
    automatic: bool = Field(
        False,
        description="besides, give each operation that cuts or falsifies the gradient (rounding, comparisons, detach, no_grad, an "
        "autograd.Function of one's own, hooks) the gradient of a smooth one, wherever one is met in the forward pass",
    )

    # Apart from the text, so that moving the campaign's folder makes no other attack of it.
    _files: dict[str, Path] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _use(self, info: ValidationInfo) -> BPDAParams:
        if not self.attack.make().traits.gradients:
            raise ValueError(f"attack '{self.attack.kind}' uses no gradient, so a surrogate changes nothing")
        for reference in self.surrogates.values():
            if reference != "identity" and (file := source_file(reference)):
                self._files[reference] = TypeAdapter(CampaignPath).validate_python(file, context=info.context)
        return self

    @property
    def code_files(self) -> list[Path]:
        """The files that hold the functions, as far as these can be located without being imported."""
        modules = [reference.rpartition(":")[0] for reference in self.surrogates.values() if reference not in self._files]
        located = [plugins.module_file(module) for module in modules if module]
        return [*self._files.values(), *(file for file in located if file)]

    def function(self, reference: str) -> Surrogate:
        """The function that a value of the parameter ``surrogates`` names."""
        if reference == "identity":
            return identity
        if file := self._files.get(reference):
            reference = f"{file}:{reference.rpartition(':')[2]}"
        return function_by_reference(reference)


class BPDA(Wrapper):
    """Backward pass differentiable approximation, around another attack."""

    Params = BPDAParams
    uses_surrogates = True
    source = "Athalye, Carlini & Wagner 2018, arXiv:1802.00420"

    @cached_property
    def named(self) -> dict[str, Surrogate]:
        """The functions that the parameter ``surrogates`` names, by stage."""
        return {stage: self.params.function(reference) for stage, reference in self.params.surrogates.items()}

    def files(self) -> list[Path]:
        """The code of surrogates of one's own with the modules that it imports, and what the wrapped attack reads."""
        return [*(source for file in self.params.code_files for source in source_files(file)), *super().files()]

    def missing(self, capabilities: Capabilities) -> list[Capability]:
        """What the wrapped attack misses; the gradients are the surrogates'."""
        return super().missing(capabilities | {"gradients"})

    @contextmanager
    def wrapped_target(self, target: Target) -> Iterator[Target]:
        """The target itself, with the surrogates' gradients for its stages. A surrogate's own computation is part of the backward pass.

        Raises:
            TargetError: no stage of the target declares a surrogate and none is named, or a named stage does not exist.
        """
        surrogates = declared_surrogates(target) | self.named
        if not (surrogates or self.params.automatic):
            raise TargetError(
                "no stage of the target declares a backward surrogate",
                fix="give the stage a method surrogate(inputs), name it: surrogates: {stage: identity}, or set automatic: true",
            )
        with backward_surrogates(target.module, surrogates):
            if self.params.automatic:
                from robustkd.targets.automatic_surrogates import DifferentiableTarget  # late: it imports torch

                target = DifferentiableTarget(target)
            yield target
