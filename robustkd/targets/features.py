"""The features of a network that a perceptual distance is measured by."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from robustkd.contracts import BaseTarget, PerceptualBudget, Target, TargetError, ThreatModel
from robustkd.contracts.image_changes.perceptual import SELF
from robustkd.contracts.target import of_kind
from robustkd.lazy import torch
from robustkd.targets.activations import InputHook, OutputHook, input_hooks, output_hooks, submodules
from robustkd.targets.frozen import frozen

if TYPE_CHECKING:
    from torch import Tensor, nn

_LOG = logging.getLogger(__name__)
_CHOSEN = 5
"""How many layers are compared where none are named: as many as of the paper's AlexNet and ResNet-50."""


class LayerFeatures:
    """(B, *shape) inputs -> (B, D), the activations of several layers, normalised as in LPIPS and put side by side.

    Where no layers are named, up to five of those with weights are chosen in the order in which a pass calls them, spread evenly from
    the second to the last, and what they are *given* is compared: this is what the layer before it made, after its nonlinearity. Of a
    network with one such layer it is what the network returns. The log says which.

    Args:
        target: the network. The gradient of the features counts as a backward pass of the whole of it.
        layers: submodules whose outputs are compared.

    Raises:
        TargetError: there is no such submodule.
    """

    def __init__(self, target: Target, layers: Sequence[str] = ()) -> None:
        self._target = target
        self._named = submodules(target.module, layers)
        self._given: list[nn.Module] = []

    def __call__(self, inputs: Tensor) -> Tensor:
        """(B, D).

        Raises:
            TargetError: a layer gives something else than one row for each input.
        """
        if not (self._named or self._given):
            self._choose(inputs[:1])
        made, given = _Activations(len(self._named)), _Activations(len(self._given))
        root = self._target.module
        with (
            frozen(root),
            input_hooks([root] * 2, [made.begin, given.begin]),
            output_hooks(self._named, [made.of_output(number) for number in range(len(self._named))]),
            input_hooks(self._given, [given.of_input(number) for number in range(len(self._given))]),
            output_hooks([root] * 2, [made.end, given.end]),
        ):
            logits = self._target(inputs)
        parts = [*made.taken(len(inputs)), *given.taken(len(inputs))]
        features = torch.cat([unit_activations(part) for part in parts], 1)
        return features + 0 * logits.sum(1, keepdim=True).to(features.dtype)

    def _choose(self, inputs: Tensor) -> None:
        """Take some of the layers with weights that one pass over a single input calls once, without the first."""
        names = {
            layer: name
            for name, layer in self._target.module.named_modules()
            if getattr(getattr(layer, "weight", None), "ndim", 0) >= 2
        }
        called: list[nn.Module] = []

        def note(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
            usual = arguments and isinstance(arguments[0], torch.Tensor) and arguments[0].is_floating_point()
            if usual and arguments[0].ndim >= 2 and len(arguments[0]) == 1:
                called.append(layer)

        def begin(root: nn.Module, arguments: tuple[Any, ...]) -> None:
            called.clear()

        root = self._target.module
        with input_hooks([root, *names], [begin, *[note] * len(names)]), torch.no_grad():
            self._target.unwrapped(inputs)  # a look at the network, and no pass of an attack
        inner = [layer for layer in called if called.count(layer) == 1][1:]
        if not inner:
            self._named = [root]
            _LOG.info("perceptual distance: compared is what the network returns, for want of layers inside")
            return
        count = min(_CHOSEN, len(inner))
        self._given = [inner[round(at * (len(inner) - 1) / max(1, count - 1))] for at in range(count)]
        _LOG.info(
            "perceptual distance: compared is what these layers are given: %s", ", ".join(names[one] for one in self._given)
        )


class _Activations:
    """What ``count`` layers took or gave in the passes of a network, in order; of a pass that was begun anew, the last one's."""

    def __init__(self, count: int) -> None:
        self._whole: list[list[Tensor]] = [[] for _ in range(count)]
        self._now: list[list[Tensor]] = [[] for _ in range(count)]

    def begin(self, root: nn.Module, arguments: tuple[Any, ...]) -> None:
        """A pass of the network begins; of one that failed nothing is kept."""
        for parts in self._now:
            parts.clear()

    def end(self, root: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        """A pass has ended."""
        for whole, parts in zip(self._whole, self._now, strict=True):
            whole += parts
            parts.clear()

    def of_output(self, number: int) -> OutputHook:
        """The hook that keeps what a layer gives: a copy, since what follows may write into it."""

        def hook(layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            self._keep(number, output)

        return hook

    def of_input(self, number: int) -> InputHook:
        """The hook that keeps what a layer is given, likewise."""

        def hook(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
            self._keep(number, arguments[0])

        return hook

    def taken(self, count: int) -> list[Tensor]:
        """Of each layer, what it took or gave for ``count`` inputs; the network may have been called with a part of them at a time.

        Raises:
            TargetError: that is not one row for each.
        """
        found = [
            [*whole, *now] for whole, now in zip(self._whole, self._now, strict=True)
        ]  # an ensemble's parts are called alone
        if any(sum(map(len, parts)) != count for parts in found):
            raise TargetError(
                "a layer whose features are compared does not give one row for each input in a pass",
                fix="name submodules that are called once, with the samples first",
            )
        return [torch.cat(parts) for parts in found]

    def _keep(self, number: int, value: Any) -> None:
        if isinstance(value, torch.Tensor) and value.ndim >= 2:
            self._now[number].append(value.clone())


def unit_activations(activations: Tensor) -> Tensor:
    """(B, D): each place's activations with a 2-norm of 1 over the channels, divided by the root of the number of places.

    Args:
        activations: (B, C), (B, places, C) of a transformer, or (B, C, *places).
    """
    channels = 2 if activations.ndim == 3 else 1
    places = math.prod(activations.shape[1:]) // activations.shape[channels]
    length = torch.linalg.vector_norm(activations, dim=channels, keepdim=True)
    return (activations / ((length + 1e-10) * math.sqrt(places))).flatten(1)


def with_perceptual_features(threat: ThreatModel, target: Target) -> ThreatModel:
    """``threat`` with the features of ``target``, where a perceptual budget is measured by those of the attacked network.

    A budget that has its features already keeps them, so that they stay those of the target itself where it is wrapped for an attack.
    Other threat models are returned as they are.

    Raises:
        TargetError: the network lacks a layer that is named.
    """
    return with_perceptual_features_of(threat, {SELF: target})


def with_perceptual_features_of(threat: ThreatModel, models: Mapping[str, BaseTarget]) -> ThreatModel:
    """``threat`` with the features of that one of ``models`` which a perceptual budget names; the same where none of them is.

    Raises:
        TargetError: the network lacks a layer that is named.
        UsageError: it is no classifier of images.
    """
    budget = threat.budget
    if not isinstance(budget, PerceptualBudget) or budget.features is not None or budget.metric not in models:
        return threat
    network = of_kind(models[budget.metric], budget.metric, Target)
    return ThreatModel(budget=replace(budget, features=LayerFeatures(network, budget.layers)), goal=threat.goal)
