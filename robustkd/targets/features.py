"""The features of a network that a perceptual distance is measured by."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from robustkd.contracts import BaseTarget, PerceptualBudget, Target, ThreatModel
from robustkd.contracts.image_changes.perceptual import SELF
from robustkd.contracts.target import of_kind
from robustkd.lazy import torch
from robustkd.targets.activations import input_hooks, recorded, submodules
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
        root = self._target.module
        with frozen(root), recorded(root, self._named) as made, recorded(root, self._given, inputs=True) as given:
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
