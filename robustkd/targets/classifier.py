"""A single network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import override

from robustkd import plugins
from robustkd.contracts import AddedLater, Card, Code, TargetError
from robustkd.contracts.json_value import JsonObject, JsonValue
from robustkd.contracts.target import Bounds
from robustkd.lazy import torch
from robustkd.normalisation.constants import Constants
from robustkd.normalisation.unit import Unit
from robustkd.targets.code import allowing, call_for_card
from robustkd.targets.image import ImageTarget
from robustkd.targets.outputs import OutputFormat

if TYPE_CHECKING:
    from torch import nn


class Origin(BaseModel):
    """How a network is built again: a model plug-in, or code, and what is put around it (see ``OutputFormat`` for its other keys)."""

    model_config = ConfigDict(frozen=True)

    model: str | None = None
    params: JsonObject = {}
    code: str | None = None
    arguments: Annotated[JsonObject, Field(validation_alias="kwargs")] = {}
    normalise: Constants | None = None
    unit: JsonValue = None
    of: int | None = None


class ClassifierCard(Card):
    """The card of a single network; ``classes`` are the names of its classes, where it has any of its own."""

    origin: JsonObject
    num_classes: int
    input_shape: tuple[int, ...]
    bounds: tuple[float, float]
    classes: Annotated[tuple[str, ...] | None, AddedLater()] = None


class ClassifierTarget(ImageTarget):
    """A network from images in ``bounds`` to logits.

    Args:
        module: (B, C, H, W) in ``bounds`` -> (B, K) logits; normalisation is part of it.
        num_classes: K.
        input_shape: (C, H, W).
        origin: how to build ``module`` again: ``{"model": name, "params": {..}}`` for a model plug-in, or
            ``{"code": "package.module:function"}`` for the user's own (with ``"normalise": {"mean": [..], "std": [..]}`` where that is
            put before it, with ``"unit": [low, high]`` where it takes inputs in these bounds, and with what makes logits of its outputs,
            ``outputs.OutputFormat.to_origin``). None for a target that is never saved.
        bounds: the range of valid pixels; for a network with a ``"unit"`` in its origin that is the box of this ``Unit``.
    """

    kind = "classifier"

    def __init__(
        self,
        module: nn.Module,
        *,
        num_classes: int,
        input_shape: Sequence[int],
        origin: JsonObject | None = None,
        bounds: Bounds = (0.0, 1.0),
    ) -> None:
        super().__init__(module, num_classes=num_classes, input_shape=input_shape, bounds=bounds)
        self.origin = origin

    @classmethod
    def from_model(
        cls, name: str, params: JsonObject | None = None, *, input_shape: Sequence[int], num_classes: int
    ) -> ClassifierTarget:
        """A freshly initialised model plug-in, by name (the caller has seeded torch)."""
        plugin = plugins.load("models", name)
        model = plugin(plugin.Params(**(params or {})))
        origin = {"model": name, "params": model.params.model_dump(mode="json")}
        return cls(model.build(input_shape, num_classes), num_classes=num_classes, input_shape=input_shape, origin=origin)

    @override
    def card(self) -> JsonObject:
        if self.origin is None:
            raise TargetError(
                "this model cannot be saved: robustkd does not know how to build it again",
                fix="give it an origin: a model plug-in's name and params, or code as 'package.module:function'",
            )
        low, high = (0.0, 1.0) if "unit" in self.origin else self.bounds
        return ClassifierCard(
            target=self.kind,
            origin=self.origin,
            num_classes=self.num_classes,
            input_shape=self.input_shape,
            bounds=(float(low), float(high)),
            classes=self.classes,
        ).to_json()

    @classmethod
    @override
    def from_card(cls, card: JsonObject) -> ClassifierTarget:
        own = ClassifierCard.read(card)
        origin, shape = Origin.model_validate(own.origin), own.input_shape
        outputs = own.num_classes if origin.of is None else origin.of
        if origin.model is not None:
            plugin = plugins.load("models", origin.model)
            module = plugin(plugin.Params(**origin.params)).build(shape, outputs)
        elif origin.code is not None:
            module = call_for_card(Code(origin.code, origin.arguments))
            if origin.normalise is not None:
                module = origin.normalise.before(module, shape[0])
        else:
            raise TargetError("the origin in its card names neither a model nor code")
        bounds: Bounds = own.bounds
        if origin.unit is not None and (unit := Unit.of(origin.unit, shape)):
            module, bounds = unit.before(module), unit.box(torch.zeros(0))
        module = OutputFormat.from_origin(own.origin).append_to(module, outputs)
        target = cls(module, num_classes=own.num_classes, input_shape=shape, origin=own.origin, bounds=bounds)
        target.classes = own.classes
        return target

    def untrained(self) -> ClassifierTarget:
        """The same architecture with fresh weights (the caller has seeded torch)."""
        with allowing([Code(str(self.origin["code"]))] if self.origin and "code" in self.origin else []):
            return self.from_card(self.card())
