"""Which layers have bounds: every node of a network's graph as an operation, or the sentence that names the one that has none."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from robustkd.certification import activations
from robustkd.certification.activations import PiecewiseLinear
from robustkd.certification.affine import (
    Affine,
    Difference,
    Monotone,
    Scaling,
    Weighted,
    batch_norm,
    convolution,
    identity,
    linear,
)
from robustkd.certification.operation import Operation
from robustkd.certification.pooling import MaxPooling
from robustkd.contracts import TargetError
from robustkd.normalisation.layer import Normalise, Restored

_LAYERS: dict[type[nn.Module], Callable[[Any], Operation | None]] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.BatchNorm1d: lambda layer: None if layer.running_mean is None else batch_norm(layer),
    nn.BatchNorm2d: lambda layer: None if layer.running_mean is None else batch_norm(layer),
    nn.Dropout: lambda layer: identity(),
    nn.Dropout2d: lambda layer: identity(),
    nn.Identity: lambda layer: identity(),
    nn.Flatten: lambda layer: Monotone(),
    nn.Unflatten: lambda layer: Monotone(),
    nn.AvgPool2d: lambda layer: Monotone(mixes=True),
    nn.AdaptiveAvgPool2d: lambda layer: Monotone(mixes=True),
    Normalise: lambda layer: Monotone(),
    Restored: lambda layer: Monotone(),
    nn.MaxPool2d: lambda layer: (
        None if layer.dilation != 1 or layer.ceil_mode or layer.return_indices else MaxPooling.of(layer)
    ),
    nn.ReLU: lambda layer: activations.relu(),
    nn.LeakyReLU: lambda layer: PiecewiseLinear(layer.negative_slope) if 0 <= layer.negative_slope <= 1 else None,
    nn.Sigmoid: lambda layer: activations.sigmoid(),
    nn.Tanh: lambda layer: activations.tanh(),
    nn.SiLU: lambda layer: activations.silu(),
    nn.GELU: lambda layer: activations.gelu(layer.approximate),
    nn.Softplus: lambda layer: activations.softplus(layer.beta, layer.threshold),
}
"""The operation of a layer; None where its settings are none that have one."""

_ACTIVATIONS: dict[object, Callable[[], Operation]] = {
    F.relu: activations.relu,
    torch.relu: activations.relu,
    "relu": activations.relu,
    "relu_": activations.relu,
    torch.sigmoid: activations.sigmoid,
    F.sigmoid: activations.sigmoid,
    "sigmoid": activations.sigmoid,
    torch.tanh: activations.tanh,
    F.tanh: activations.tanh,
    "tanh": activations.tanh,
    F.silu: activations.silu,
    F.softplus: activations.softplus,
}
_RESHAPING: tuple[object, ...] = (
    torch.flatten,
    torch.cat,
    torch.squeeze,
    torch.unsqueeze,
    torch.permute,
    torch.transpose,
    operator.getitem,
    "flatten",
    "view",
    "reshape",
    "contiguous",
    "permute",
    "transpose",
    "squeeze",
    "unsqueeze",
    "clone",
)
_MEANS: tuple[object, ...] = (torch.mean, "mean", F.avg_pool2d, F.adaptive_avg_pool2d)
_SUMS: tuple[object, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_FUNCTIONS: dict[object, Callable[[], Operation]] = {
    **dict.fromkeys((*_RESHAPING, *_SUMS), Monotone),
    **dict.fromkeys(_MEANS, lambda: Monotone(mixes=True)),
    **dict.fromkeys((F.dropout, "dropout"), identity),
}
_DIFFERENCES = {operator.sub, operator.isub, torch.sub, "sub", "sub_"}
_PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul"}
_QUOTIENTS = {operator.truediv, torch.div, "div"}
_WITHOUT_SIDE_EFFECTS: dict[object, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    "add_": "add",
    "sub_": "sub",
}
_SHAPES = {getattr, "size", "dim"}


def refusal(reason: str) -> TargetError:
    """The error of a network that has no bounds."""
    return TargetError(
        f"no bounds are known of this network: {reason}",
        fix="certify networks of linear and convolutional layers, batch normalisation, pooling, sums of branches, ReLU, leaky ReLU, "
        "sigmoid, tanh, GELU, SiLU and softplus; attack the others",
    )


def is_shape(node: fx.Node) -> bool:
    """Whether a node asks a tensor for its shape, which is the same everywhere in a ball."""
    return node.target in _SHAPES and (node.target is not getattr or node.args[1] in ("shape", "ndim"))


def is_relu(node: fx.Node, module: nn.Module) -> bool:
    """Whether a node is a ReLU."""
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), nn.ReLU)
    return node.target in {F.relu, torch.relu, "relu", "relu_"}


def without_side_effects(node: fx.Node) -> None:
    """Replace an operation in place by the one that leaves its input as it is, which bounds may need once more."""
    if node.target in _WITHOUT_SIDE_EFFECTS:
        node.target = _WITHOUT_SIDE_EFFECTS[node.target]


def operation_of(node: fx.Node, module: nn.Module, varying: Sequence[fx.Node]) -> Operation:
    """The operation of a node.

    Args:
        node: of the graph of ``module``, with an argument that depends on the network's input.
        module: the network.
        varying: the nodes that do.

    Raises:
        TargetError: none is known; the error names the layer.
    """
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        make = _LAYERS.get(type(layer))
        found = make(layer) if make else None
        if found is None:
            settings = " with these settings" if make else ""
            raise refusal(f"layer '{node.target}' is a {type(layer).__name__}{settings}")
        return found
    found = _function(node, module, [one for one in node.all_input_nodes if one in varying])
    if found is None:
        called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
        raise refusal(f"its forward calls {called}() ('{node.name}') in a way that no bounds are known of")
    return found


def _function(node: fx.Node, module: nn.Module, inputs: Sequence[fx.Node]) -> Operation | None:
    target = node.target
    if not node.args or "alpha" in node.kwargs:
        return None
    if target in _ACTIVATIONS:
        settings = [*node.args[1:], *(value for name, value in node.kwargs.items() if name != "inplace")]
        return None if any(value is not False for value in settings) else _ACTIVATIONS[target]()
    if target in _FUNCTIONS:
        return _FUNCTIONS[target]()
    if target is F.gelu:
        return activations.gelu(str(node.kwargs.get("approximate", "none")))
    if target in (F.linear, F.conv2d):
        return _weighted(node, module, inputs)
    return _pooling(node) if target is F.max_pool2d else _arithmetic(node, inputs)


def _arithmetic(node: fx.Node, inputs: Sequence[fx.Node]) -> Affine | None:
    """Of a difference, or of a product or a quotient with what does not depend on the input."""
    by_constant = len(inputs) == 1 and len(set(node.args)) == len(node.args)
    if node.target in _DIFFERENCES:
        return Difference() if len(inputs) == 2 else Scaling()
    if node.target in _PRODUCTS and by_constant:
        return Scaling()
    return Scaling() if node.target in _QUOTIENTS and by_constant and node.args[0] is inputs[0] else None


def _weighted(node: fx.Node, module: nn.Module, inputs: Sequence[fx.Node]) -> Affine | None:
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    if list(inputs) != [node.args[0]] or not (isinstance(weight, fx.Node) and weight.op == "get_attr"):
        return None
    value = operator.attrgetter(str(weight.target))(module)
    if node.target is F.linear:
        return Weighted(lambda radius: F.linear(radius, value.abs()))
    settings = [*node.args[3:], *(part for name, part in node.kwargs.items() if name not in ("weight", "bias"))]
    if any(isinstance(part, fx.Node) for part in settings):
        return None
    named: dict[str, Any] = dict(zip(("stride", "padding", "dilation", "groups"), node.args[3:], strict=False))
    named |= {name: part for name, part in node.kwargs.items() if name not in ("weight", "bias")}
    return Weighted(lambda radius: partial(F.conv2d, **named)(radius, value.abs()))


def _pooling(node: fx.Node) -> MaxPooling | None:
    given: dict[str, Any] = dict(zip(("kernel_size", "stride", "padding", "dilation"), node.args[1:], strict=False))
    given |= {name: value for name, value in node.kwargs.items() if name not in ("ceil_mode", "return_indices") or value}
    if given.pop("dilation", 1) != 1 or not set(given) <= {"kernel_size", "stride", "padding"}:
        return None
    return MaxPooling(given["kernel_size"], given.get("stride"), given.get("padding", 0))
