"""Bounds carried through a network: intervals forwards, linear functions backwards.

    interval    each layer's output from the intervals of its inputs (IBP)
    linear      a function of the output is replaced, layer by layer from the back, by one of the input that is nowhere above it:
                a x + b <= c f(x);  its least value over the ball is known exactly

For the lines around an activation the interval of its input is needed: from intervals (CROWN-IBP), or from linear bounds of
their own where it matters (CROWN).

Sources: Gowal et al.: On the effectiveness of interval bound propagation for training verifiably robust models (2018);
Zhang et al.: Efficient neural network robustness certification with general activation functions (NeurIPS 2018); Xu et al.: Automatic
perturbation analysis for scalable certified robustness and beyond (NeurIPS 2020), for general graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from robustkd.certification.activations import PiecewiseLinear
from robustkd.certification.ball import Ball
from robustkd.certification.graph import traced
from robustkd.certification.layers import is_shape, operation_of, refusal, without_side_effects
from robustkd.certification.operation import Call, Interval, Operation

_ELEMENTS = 2**25  # numbers of one set of coefficients in memory at once, at most


@dataclass
class Intervals:
    """What a pass forwards found over a ball.

    Attributes:
        of: the interval of each node that depends on the input.
        constant: the value of each node that does not.
    """

    ball: Ball
    of: dict[fx.Node, Interval] = field(default_factory=dict)
    constant: dict[fx.Node, Any] = field(default_factory=dict)


class BoundedNetwork:
    """A network whose answers within a ball are bounded; it shares the layers and weights of ``module``, in their precision.

    Args:
        module: from (B, *shape) to (B, K).

    Raises:
        TargetError: a layer has no bounds known here; the error names it.
    """

    def __init__(self, module: nn.Module) -> None:
        self._graph = traced(module, refusal)
        self._operations: dict[fx.Node, Operation] = {}
        self._varying: list[fx.Node] = []
        for node in self._graph.graph.nodes:
            without_side_effects(node)
            inputs = [one for one in node.all_input_nodes if one in self._varying]
            if node.op == "placeholder":
                self._varying.append(node)
            elif node.op == "output":
                if len(node.all_input_nodes) != 1 or node.args[0] is not node.all_input_nodes[0]:
                    raise refusal("it returns something else than one tensor of logits")
                self.output: fx.Node = node.all_input_nodes[0]
            elif inputs and not is_shape(node):
                self._operations[node] = operation_of(node, self._graph, self._varying)
                self._varying.append(node)
        self._mixings = self._count_mixings()

    def _count_mixings(self) -> dict[fx.Node, float]:
        """How many layers lie before a node that add up several values; infinite behind an activation and where branches meet."""
        mixings: dict[fx.Node, float] = {}
        for node in self._varying:
            if node.op == "placeholder":
                mixings[node] = 0
                continue
            inputs, operation = self._inputs(node), self._operations[node]
            simple = len(inputs) == 1 and not operation.relaxes
            mixings[node] = mixings[inputs[0]] + operation.mixes if simple else torch.inf
        return mixings

    def _inputs(self, node: fx.Node) -> list[fx.Node]:
        return [one for one in node.all_input_nodes if one in self._operations or one.op == "placeholder"]

    def intervals(self, ball: Ball, *, refine: bool = False) -> Intervals:
        """The interval of every layer's output over a ball.

        Args:
            ball: of B images.
            refine: bound what activations are given by linear functions too, where that can change something.
        """
        found = Intervals(ball)
        for node in self._graph.graph.nodes:
            if node.op == "placeholder":
                found.of[node] = ball.box
            elif node.op == "get_attr":
                found.constant[node] = _attribute(self._graph, str(node.target))
            elif node in self._operations:
                given, operation = self._inputs(node), self._operations[node]
                if refine and operation.relaxes:
                    self._refine(found, given[0], piecewise=isinstance(operation, PiecewiseLinear))
                found.of[node] = operation.interval(self._call(node, found), [found.of[one] for one in given])
            elif node.op != "output":
                known = {one: found.of[one].low if one in found.of else found.constant[one] for one in node.all_input_nodes}
                found.constant[node] = self._run(node, known)
        return found

    def _refine(self, found: Intervals, node: fx.Node, *, piecewise: bool) -> None:
        """Cut a node's interval by linear bounds; of an input of ReLUs only where one can switch."""
        if found.ball.radius is None and self._mixings[node] <= 1:
            return  # a weighted sum of free pixels: its interval is exact
        before = found.of[node]
        low, high = before.low, before.high
        loose = ((low < 0) & (high > 0) if piecewise else high > low).flatten(1).any(0).nonzero().squeeze(1)
        if not len(loose):
            return
        batch, shape = len(low), low.shape[1:]
        size = max(one.low.numel() for one in found.of.values())
        lower, upper = low.flatten(1).clone(), high.flatten(1).clone()
        for part in loose.split(max(1, _ELEMENTS // size)):
            rows = low.new_zeros(len(part), batch, shape.numel())
            rows[torch.arange(len(part)), :, part] = 1.0
            rows = rows.unflatten(2, shape)
            lower[:, part] = self.linear(found, rows, at=node).T
            upper[:, part] = -self.linear(found, -rows, at=node).T
        found.of[node] = before.cut(Interval(lower.unflatten(1, shape), upper.unflatten(1, shape)))

    def linear(self, found: Intervals, rows: Tensor, *, at: fx.Node | None = None, layers: int | None = None) -> Tensor:
        """(S, B): what S linear functions of a node's output are at least, over the ball.

        Args:
            found: the intervals over the ball.
            rows: (S, B, *shape) the coefficients.
            at: of which node; by default the network's output.
            layers: how many layers back the functions are followed; by default to the input.
        """
        at = at or self.output
        pending = {at: rows}
        total = rows.new_zeros(rows.shape[:2])
        for node in reversed(self._varying[: self._varying.index(at) + 1]):
            if node not in pending:
                continue
            coefficients = pending.pop(node)
            if node.op == "placeholder":
                total = total + found.ball.least(coefficients)
                continue
            if layers is not None and layers == 0:
                total = total + found.of[node].least(coefficients)
                continue
            layers = None if layers is None else layers - 1
            inputs = self._inputs(node)
            passed, constant = self._operations[node].lower(
                self._call(node, found), [found.of[one] for one in inputs], coefficients
            )
            total = total + constant
            for one, part in zip(inputs, passed, strict=True):
                pending[one] = pending[one] + part if one in pending else part
        return total

    def _call(self, node: fx.Node, found: Intervals) -> Call:
        inputs, constants = self._inputs(node), found.constant

        def call(*tensors: Tensor) -> Tensor:
            result: Tensor = self._run(node, {**constants, **dict(zip(inputs, tensors, strict=True))})
            return result

        return call

    def _run(self, node: fx.Node, known: Mapping[fx.Node, Any]) -> Any:
        args = fx.map_arg(node.args, lambda one: known[one])
        kwargs = fx.map_arg(node.kwargs, lambda one: known[one])
        if node.op == "call_module":
            return self._graph.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value
