"""A ReLU network as linear inequalities: which inputs of a box reach an output, while most ReLUs keep the side that they are on.

The network is run once on a batch of 1 + D + F rows, which stand for a function of the D pixels and of the F outputs of free ReLUs:
row 0 is the constant, each other row the coefficient of one variable. An affine layer maps such a batch to another one (what it makes
of zeros is taken off the coefficients). At a ReLU each neuron is one of

    certain   the box leaves it no choice: it passes its input on, or 0
    fixed     it stays on the side on which a given point has it, and one inequality says so
    free      its output p is a variable, and so is its side s in {0, 1}:  p >= 0,  p >= z,  p <= z - l (1 - s),  p <= u s

with l <= z <= u from interval arithmetic over the box.

Source: Tjeng, Xiao, Tedrake: Evaluating robustness of neural networks with mixed integer programming (ICLR 2019), for the four
inequalities.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from robustkd.certification.graph import traced
from robustkd.certification.layers import is_relu
from robustkd.contracts import AttackError
from robustkd.normalisation.layer import Normalise, Restored

if TYPE_CHECKING:
    from torch import Tensor

_AFFINE_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
    Normalise,
    Restored,
)
_SCALING = {operator.mul, operator.truediv, torch.mul, torch.div}
_AFFINE = {torch.flatten, operator.add, operator.sub, torch.add, torch.sub, F.avg_pool2d, F.adaptive_avg_pool2d}
_AFFINE_METHODS = {"flatten", "view", "reshape", "mean", "add", "sub", "contiguous"}
_SHAPES = {getattr, operator.getitem}  # of x.shape[0], say
_LARGEST = 2**27  # coefficients of all ReLUs together, 1 GiB


def _varies(argument: object) -> bool:
    """Whether it depends on the network's input."""
    return isinstance(argument, fx.Node) and argument.op != "get_attr"


class ReluNetwork:
    """A network of affine layers and ReLUs, in double precision on the CPU.

    Args:
        module: layers of ``torch.nn`` in any arrangement that ``torch.fx`` can follow.
        user: what asks for it, as an error names it.

    Raises:
        AttackError: something in it is neither an affine layer nor a ReLU.
    """

    def __init__(self, module: nn.Module, user: str) -> None:
        self._user = user
        copied = copy.deepcopy(module).cpu().double().eval()
        self.graph = traced(copied, self._refusal)
        for node in self.graph.graph.nodes:
            self._check(node)

    def _check(self, node: fx.Node) -> None:
        if node.op in ("placeholder", "output", "get_attr") or is_relu(node, self.graph):
            return
        if node.op == "call_module":
            layer = self.graph.get_submodule(str(node.target))
            if not isinstance(layer, _AFFINE_LAYERS):
                raise self._refusal(f"{node.target} is a {type(layer).__name__}")
        elif node.op == "call_method" and node.target not in (*_AFFINE_METHODS, "size"):
            raise self._refusal(f"it calls .{node.target}()")
        elif node.target in _SCALING and not _varies(node.args[1]):
            return
        elif node.op == "call_function" and node.target not in (_AFFINE | _SHAPES):
            raise self._refusal(f"it calls {getattr(node.target, '__name__', node.target)}")

    def _refusal(self, reason: str) -> AttackError:
        return AttackError(
            f"{self._user} solves networks of affine layers and ReLUs, and this is none: {reason}",
            fix=f"use {self._user} on linear and convolutional layers, average pooling and ReLU alone",
        )

    def inputs_of_relus(self, x: Tensor) -> list[Tensor]:
        """What each ReLU layer is given at one point ``x`` (*shape), flat."""
        run = _AtPoint(self.graph)
        with torch.no_grad():
            run.run(x.cpu().double().unsqueeze(0))
        return run.seen

    def near(self, x: Tensor, low: Tensor, high: Tensor, free: int) -> LinearPiece:
        """The network on the box ``low`` to ``high`` (*shape) with all but ``free`` of its ReLUs on the side on which ``x`` has them;
        the free ones are those whose inputs at ``x`` are nearest to 0.

        Raises:
            AttackError: the inequalities would not fit into memory.
        """
        seen = self.inputs_of_relus(x)
        count = sum(len(layer) for layer in seen)
        if count * (1 + x.numel() + min(free, count)) > _LARGEST:
            raise AttackError(
                f"{self._user} is for small networks: this one has {count} ReLUs on {x.numel()} pixels",
                fix="use autoattack, or bounds that are not exact",
            )
        nearest = torch.zeros(count, dtype=torch.bool)
        if seen:
            nearest[torch.cat(seen).abs().argsort(stable=True)[:free]] = True
        run = _Rows(
            self.graph,
            seen,
            nearest.split([len(layer) for layer in seen]),
            LinearPiece(low.cpu().double().flatten(), high.cpu().double().flatten()),
        )
        with torch.no_grad():
            rows = run.run(torch.cat([torch.zeros(1, x.numel()), torch.eye(x.numel())]).double().unflatten(1, tuple(x.shape)))
        run.piece.outputs = run.padded(rows).T
        return run.piece


@dataclass
class LinearPiece:
    """A network's outputs as linear functions, over the points that satisfy the inequalities.

    A function is a row (1 + D + F,): its constant, the coefficients of the pixels, and those of the free ReLUs' outputs.

    Attributes:
        low, high: (D,) the box.
        outputs: (K, 1 + D + F) the logits.
        positive: functions that must be at least 0: each a row of its own length, the missing coefficients are 0.
        free: of each free ReLU its input as a function and that input's lower and upper bound.
    """

    low: Tensor
    high: Tensor
    outputs: Tensor = field(default_factory=lambda: torch.zeros(0))
    positive: list[Tensor] = field(default_factory=list)
    free: list[tuple[Tensor, float, float]] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether no ReLU was fixed: an optimum over this piece is one over the box."""
        return not self.positive

    def bounds(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(1 + D + F, N) functions -> (N,) their least and greatest values over the box, by interval arithmetic."""
        tops = torch.tensor([upper for _, _, upper in self.free], dtype=rows.dtype)
        low, high = torch.cat([self.low, torch.zeros_like(tops)]), torch.cat([self.high, tops])
        up, down = rows[1:].clamp_min(0), rows[1:].clamp_max(0)
        return rows[0] + low @ up + high @ down, rows[0] + high @ up + low @ down


class _AtPoint(fx.Interpreter):
    """Runs the network on one point, and notes what its ReLUs are given."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.seen: list[Tensor] = []

    def run_node(self, n: fx.Node) -> Any:
        if is_relu(n, self.module):
            self.seen.append(self.fetch_args_kwargs_from_env(n)[0][0].flatten())
        return super().run_node(n)


class _Rows(fx.Interpreter):
    """Runs the network on functions instead of points, and collects the inequalities."""

    def __init__(self, graph: fx.GraphModule, at: Sequence[Tensor], nearest: Sequence[Tensor], piece: LinearPiece) -> None:
        super().__init__(graph)
        self.at, self.nearest, self.piece, self.layer = at, nearest, piece, 0

    def padded(self, value: Any) -> Any:
        """A batch of rows, with zeros for the ReLUs that became free after it was made."""
        if not isinstance(value, torch.Tensor):
            return value
        missing = 1 + len(self.piece.low) + len(self.piece.free) - len(value)
        return torch.cat([value, value.new_zeros(missing, *value.shape[1:])])

    def run_node(self, n: fx.Node) -> Any:
        if n.op in ("placeholder", "output", "get_attr"):
            return super().run_node(n)
        given, kwargs = self.fetch_args_kwargs_from_env(n)
        args = tuple(self.padded(a) if _varies(node) else a for a, node in zip(given, n.args, strict=True))
        if is_relu(n, self.module):
            return self._relu(args[0])
        run = getattr(self, n.op)
        rows = run(n.target, args, kwargs)
        if not isinstance(rows, torch.Tensor):
            return rows  # a size
        nothing = tuple(
            torch.zeros_like(a) if _varies(node) and isinstance(a, torch.Tensor) else a
            for a, node in zip(args, n.args, strict=True)
        )
        return torch.cat([rows[:1], rows[1:] - run(n.target, nothing, kwargs)[:1]])

    def _relu(self, rows: Tensor) -> Tensor:
        piece, at, nearest = self.piece, self.at[self.layer], self.nearest[self.layer]
        self.layer += 1
        flat = rows.flatten(1)
        lower, upper = piece.bounds(flat)
        uncertain = (lower < 0) & (upper > 0)
        free = uncertain & nearest
        fixed = uncertain & ~free
        on = torch.where(uncertain, at > 0, lower >= 0)
        piece.positive += list((flat * torch.where(on, 1.0, -1.0))[:, fixed].T)
        indices = free.nonzero().squeeze(1)
        piece.free += [(flat[:, i], float(lower[i]), float(upper[i])) for i in indices.tolist()]
        out = flat.new_zeros(len(flat) + len(indices), flat.shape[1])
        out[: len(flat)] = flat * (on & ~free)
        out[len(flat) + torch.arange(len(indices)), indices] = 1.0
        return out.unflatten(1, rows.shape[1:])
