"""The target contract: the thing that is attacked."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypeVar

from robustkd.contracts.capability import ORDINARY, Capabilities
from robustkd.contracts.devices import move
from robustkd.contracts.errors import UsageError
from robustkd.contracts.json_value import JsonObject

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Precision = Literal["full", "bf16"]
"""In which fixed-budget attacks but AutoAttack take gradients: the network's own precision, or bfloat16 (autocast)."""

Bounds: TypeAlias = "tuple[float, float] | tuple[Tensor, Tensor]"
"""The lowest and the highest valid input: ``x.clamp(*bounds)`` is valid for (B, *shape) of any x."""


class BaseTarget(ABC):
    """What every target has: a network, and a *card*, plain JSON from which the same object can be rebuilt once its weights are
    loaded. A target derives from ``Target``, which classifies, or from ``GenerativeTarget``, which answers.

    Attributes:
        kind: the target's type, as written in its card.
        module: the network.
        capabilities: what it can be asked for; a class declares what all its targets have, an object may have more or less.
    """

    kind: str
    module: nn.Module
    capabilities: Capabilities

    @abstractmethod
    def card(self) -> JsonObject:
        """A JSON description that ``from_card`` can rebuild the target from, given its weights. See ``Card`` for a typed one."""

    @classmethod
    @abstractmethod
    def from_card(cls, card: JsonObject) -> BaseTarget:
        """The target described by ``card``, with fresh weights."""

    @property
    def device(self) -> torch.device:
        """Where the weights are (the CPU for a network without any)."""
        import torch  # late: importing the contracts does not import it

        return next((tensor.device for tensor in self.module.parameters()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> Self:
        """Move the weights to a device, and return the target itself."""
        move(self.module, device)
        return self


Kind = TypeVar("Kind", bound=BaseTarget)


def of_kind(target: BaseTarget, name: str, kind: type[Kind]) -> Kind:
    """The target called ``name``, which has to be of this type.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(target, kind):
        generative = "respond" in getattr(kind, "capabilities", ())
        wanted = getattr(kind, "kind", "model that answers" if generative else "classifier of images")
        raise UsageError(f"'{name}' is a {target.kind}, where a {wanted} is needed", fix="name another defense")
    return target


class Target(BaseTarget):
    """A classifier ready to be attacked, with everything that makes eps mean the same thing everywhere.

    Inputs are in the target's own ``bounds`` (pixels in [0, 1]); normalisation, resizing and every other
    preprocessing step live inside ``module``.

    Attributes:
        module: the network, callable on a batch of inputs. A stage of it (any submodule) without a useful gradient may
            declare one by a method ``surrogate(inputs) -> Tensor``, called like ``forward``: see ``targets.surrogate``.
        precision: in which a search that only goes uphill is to ask for gradients; whoever asks sees to it.
        bounds: the range of valid inputs; pixels in [0, 1] where a target declares no other. Where the features' ranges differ, two
            tensors that broadcast over a sample's shape.
        num_classes: K.
        input_shape: of one input, such as (C, H, W).
        output: what ``__call__`` returns, as far as that is known for certain. On log-probabilities every loss means what it
            means on logits: they differ by a number that is the same for all classes of a sample.
        members: of an ensemble, the classifiers that answer together; else empty.
        never_adversarial: True of a model that stands in for another one: no input that fools it counts, so that an attack goes
            on to its last step.
        rejects: whether the last of the outputs says that the input is rejected and not answered. No attacker wants that: a success
            is another class than the label, and accepted. ``num_classes`` counts this output.
    """

    capabilities: Capabilities = ORDINARY["images"]
    precision: Precision = "full"
    bounds: Bounds = (0.0, 1.0)
    num_classes: int
    input_shape: tuple[int, ...]
    output: Literal["logits", "log-probabilities"] = "logits"
    members: Sequence[Target] = ()
    never_adversarial: bool = False
    rejects: bool = False

    @classmethod
    @abstractmethod
    def from_card(cls, card: JsonObject) -> Target:
        """The target described by ``card``, with fresh weights."""

    @abstractmethod
    def __call__(self, inputs: Tensor) -> Tensor:
        """(B, *input_shape) -> (B, K) logits."""

    @property
    def unwrapped(self) -> Target:
        """The target itself, without what only wraps it (``WrappedTarget``)."""
        return self

    def in_precision(self, precision: Precision) -> Target:
        """The same network, to be asked for gradients in ``precision``; itself where it is already."""
        if precision == self.precision:
            return self
        asked = copy.copy(self)
        asked.precision = precision
        return asked


class WrappedTarget(Target):
    """A target that answers through another one. A subclass overrides ``__call__``; bounds, classes and the rest are the inner one's."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.kind = target.kind  # what is said about the target is said of the inner one
        self.module = target.module
        self.capabilities = target.capabilities
        self.precision = target.precision
        self.bounds = target.bounds
        self.output = target.output
        self.members = target.members
        self.rejects = target.rejects
        self.never_adversarial = self.never_adversarial or target.never_adversarial

    def __getattr__(self, name: str) -> Any:
        if name == "target":  # not yet set: while unpickling, say
            raise AttributeError(name)
        return getattr(self.target, name)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the inner target's answer to ``inputs``."""
        return self.target(inputs)

    @property
    def unwrapped(self) -> Target:
        """The target inside of all wrappers."""
        return self.target.unwrapped

    @property
    def device(self) -> torch.device:
        """The device of the inner target."""
        return self.target.device

    def card(self) -> JsonObject:
        """The inner target's: a wrapper lives as long as what uses it."""
        return self.target.card()

    @classmethod
    def from_card(cls, card: JsonObject) -> Target:
        """A wrapper cannot be made from a card: it is never stored."""
        raise NotImplementedError("a wrapper is never stored")
