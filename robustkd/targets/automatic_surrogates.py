"""Backward surrogates that are found in a forward pass, not declared: what BPDA needs where nobody says which stage has no gradient.

While a network computes its answer, each operation that cuts or falsifies the gradient keeps its value and is given another
backward pass:

    round, floor, ceil, trunc             the identity
    sign                                  a line through 0 whose mean absolute value is 1
    a > b, a < b, ..                      a sigmoid of a - b, where the answer is used as a number or in ``where``
    argmax, topk                          a softmax, where the answer is used by one_hot, as an index or in ``embedding``
    sigmoid and tanh, where most are flat the identity
    detach, .data, no_grad                the gradient that they cut
    a cast to integers                    the identity, where it is cast back
    an autograd.Function of one's own     the identity, where the shape allows it
    hooks on gradients                    none
    what squashes the logits at the end   none: the answer is what it made of them (see ``inner_logits``)

The decision at each point is what it always is. So an adversarial example that is found in this way is one of the network itself.
What is not reached: operations in C++ extensions, in scripted or exported modules, and inside ``torch.inference_mode``.

The idea is that of the straight-through estimator (Bengio, Leonard & Courville 2013, arXiv:1308.3432), used on all such operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from robustkd.contracts import Target
from robustkd.contracts.target import WrappedTarget
from robustkd.lazy import nn, torch
from robustkd.targets.inner_logits import InnerLogits

if TYPE_CHECKING:
    from torch import Tensor

_STEPS = {
    "round",
    "floor",
    "ceil",
    "trunc",
    "fix",
    "sign",
    "sgn",
    "round_",
    "floor_",
    "ceil_",
    "trunc_",
    "fix_",
    "sign_",
    "sgn_",
}
_ABOVE, _BELOW = (
    {"gt", "ge", "greater", "greater_equal", "__gt__", "__ge__"},
    {"lt", "le", "less", "less_equal", "__lt__", "__le__"},
)
_CASTS = {"to", "type", "type_as", "float", "double", "half", "bfloat16", "long", "int", "short", "byte", "char"}
_ARITHMETIC = {
    "mul",
    "__mul__",
    "__rmul__",
    "multiply",
    "add",
    "__add__",
    "__radd__",
    "sub",
    "__sub__",
    "rsub",
    "__rsub__",
    "div",
}
_SATURATING: Mapping[str, Callable[[Tensor], Tensor]] = {"sigmoid": lambda s: s * (1 - s), "tanh": lambda s: 1 - s * s}
"""Functions that lose their slope, with it as a function of their value."""
_FLAT = 1e-3
"""The slope below which such a function is flat; where most of its values are, it is given a surrogate."""
_SMOOTH = "_robustkd_smooth"
"""The attribute of a tensor without a gradient that holds a differentiable one: of a comparison's or of integers' about its value, of
indices (*shape) the probabilities (*shape, C) of each."""
_RANKS = 8
"""Of how many highest entries ``topk`` has a surrogate."""
_TEMPERATURE = 0.2
"""The temperature of the softmax that stands for a choice, as a share of the mean difference between what is chosen from."""
_WIDTH = 0.1
"""Of the sigmoid that stands for a comparison, as a share of the mean difference of the two sides."""


def _differentiable(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _with_gradient_of(value: Tensor, smooth: Tensor) -> Tensor:
    """``value``, with the gradient of ``smooth``. The bracket is exactly zero."""
    return value.detach() + (smooth - smooth.detach()).to(value.dtype)


class _Recording(TorchFunctionMode):
    """Keeps the matrices of a forward pass, in their order, as ``scores``."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        value = self._value(func, args, kwargs or {})
        if isinstance(value, torch.Tensor) and value.ndim == 2 and value.is_floating_point():
            self.scores.append(value)
        return value

    def _value(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return func(*args, **kwargs)


class _Replacing(_Recording):
    """Gives the operations of a forward pass their surrogates; ``replaced`` names those that it met."""

    def __init__(self) -> None:
        super().__init__()
        self.replaced: set[str] = set()

    @override
    def _value(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        name = getattr(func, "__name__", "")
        if name == "_set_grad_enabled" and args and not args[0]:
            self.replaced.add("no_grad")
            return None
        first: Any = args[0] if args else None
        if name in ("detach", "detach_") and _differentiable(first):
            self.replaced.add("detach")
            return first
        if name == "__get__" and _differentiable(first) and func == torch.Tensor.data.__get__:  # type: ignore[attr-defined]
            self.replaced.add("data")
            return first
        if name == "register_hook" and not _counts_passes(args[1]):
            self.replaced.add("hook")
            return _NoHandle()
        if name in _ARITHMETIC:
            args = tuple(self._number(argument) for argument in args)
        value = func(*args, **kwargs)
        if name == "topk" and _differentiable(first):
            _note_ranks(value[1], first, kwargs["dim"] if "dim" in kwargs else args[2] if len(args) > 2 else -1)
        if not isinstance(value, torch.Tensor):
            return value
        return self._replaced_value(name, value, args, kwargs)

    def _replaced_value(self, name: str, value: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        first: Any = args[0] if args else None
        if name in _SATURATING and _differentiable(first):
            return self._unsaturated(name, value, first)
        if name in ("__getitem__", "embedding", "index_select"):
            return self._looked_up(value, *_table_and_index(name, args, kwargs))
        if value.requires_grad and name not in _STEPS and name != "where":
            return value
        return self._smoothed(name, value, args, kwargs)

    def _unsaturated(self, name: str, value: Tensor, inputs: Tensor) -> Tensor:
        if float((_SATURATING[name](value.detach()) < _FLAT).float().mean()) <= 0.5:
            return value
        self.replaced.add(name)
        return _with_gradient_of(value, inputs)

    def _smoothed(self, name: str, value: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        first: Any = args[0] if args else None
        if name in _STEPS and _differentiable(first):
            self.replaced.add(name.rstrip("_"))
            unit = (
                first.detach().abs().mean().clamp_min(torch.finfo(first.dtype).tiny) if name.startswith(("sign", "sgn")) else 1
            )
            return _with_gradient_of(value, first / unit)
        if name in ("floor_divide", "__floordiv__") and (_differentiable(first) or _differentiable(args[1])):
            self.replaced.add("floor_divide")
            return _with_gradient_of(value, args[0] / args[1])
        if name in _ABOVE | _BELOW and any(map(_differentiable, args[:2])):
            difference = args[0] - args[1] if name in _ABOVE else args[1] - args[0]
            width = (_WIDTH * difference.detach().abs().mean()).clamp_min(torch.finfo(difference.dtype).tiny)
            setattr(value, _SMOOTH, (difference / width).sigmoid())
        elif name == "argmax" and _differentiable(first) and (len(args) > 1 or "dim" in kwargs):
            dim = kwargs["dim"] if "dim" in kwargs else args[1]
            setattr(value, _SMOOTH, _probabilities(first.movedim(dim, -1), 1).squeeze(-2))
        elif name == "one_hot" and (smooth := getattr(first, _SMOOTH, None)) is not None and smooth.shape == value.shape:
            setattr(value, _SMOOTH, smooth)
        elif name == "where" and len(args) == 3 and (smooth := getattr(first, _SMOOTH, None)) is not None:
            self.replaced.add("where")
            return value + (smooth - smooth.detach()).to(value.dtype) * (args[1] - args[2])
        elif name in _CASTS and isinstance(first, torch.Tensor):
            smooth = first if first.requires_grad else getattr(first, _SMOOTH, None)
            if smooth is None or smooth.shape != value.shape:
                return value
            if value.is_floating_point():
                self.replaced.add("cast")
                return _with_gradient_of(value, smooth)
            setattr(value, _SMOOTH, smooth)
        return value

    def _looked_up(self, value: Tensor, table: Any, index: Any) -> Tensor:
        """Rows of a table that were chosen by scores: their mean under the probabilities of the choice, as a gradient."""
        chosen, parts = getattr(index, _SMOOTH, None), getattr(table, _SMOOTH, None)
        if parts is not None and parts.shape[:-1] == table.shape:
            part = parts[index]
            if part.shape[:-1] == value.shape:
                setattr(value, _SMOOTH, part)
        elif chosen is not None and value.is_floating_point() and chosen.shape == (*index.shape, len(table)):
            self.replaced.add("index")
            mean = torch.tensordot(chosen.to(table.dtype), table, 1)
            return value + (mean - mean.detach())
        return value

    def _number(self, argument: Any) -> Any:
        """A comparison or integers, in arithmetic: as a number with its gradient."""
        smooth = getattr(argument, _SMOOTH, None) if isinstance(argument, torch.Tensor) else None
        if smooth is None or smooth.shape != argument.shape:
            return argument
        self.replaced.add("cast")
        return _with_gradient_of(argument.to(smooth.dtype), smooth)


def _table_and_index(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """What an operation looks up, and where: (None, None) where it is not along the first dimension."""
    if name == "embedding":
        return (args[1] if len(args) > 1 else kwargs["weight"]), args[0]
    if name == "index_select":
        return (args[0], args[2]) if len(args) == 3 and args[1] == 0 else (None, None)
    return args[0], args[1]


def _probabilities(scores: Tensor, count: int) -> Tensor:
    """(*shape, C) scores -> (*shape, count, C): how probable each is as the highest, the second highest, ..

    The temperature is a share of the mean difference between the highest and the last of them, of the highest two at least.
    """
    best = scores.detach().topk(min(max(count, 2), scores.shape[-1]), dim=-1)
    unit = (_TEMPERATURE * (best.values[..., 0] - best.values[..., -1]).mean()).clamp_min(torch.finfo(scores.dtype).tiny)
    left, found = scores / unit, []
    for rank in range(count):
        found.append(left.softmax(-1))
        left = left.scatter(-1, best.indices[..., rank : rank + 1], -torch.inf)
    return torch.stack(found, -2)


def _note_ranks(indices: Tensor, scores: Tensor, dim: int) -> None:
    count = indices.shape[dim]
    if count <= _RANKS:
        setattr(indices, _SMOOTH, _probabilities(scores.movedim(dim, -1), count).movedim(-2, dim if dim >= 0 else dim - 1))


def _counts_passes(hook: object) -> bool:
    """Whether a hook on a gradient is one of robustkd's own, which look at it and change nothing."""
    return str(getattr(hook, "__module__", "")).startswith("robustkd.")


class _NoHandle:
    """What ``register_hook`` returns where no hook is registered."""

    def remove(self) -> None:
        """There is nothing to remove."""


class DifferentiableTarget(WrappedTarget):
    """A target whose answers have a gradient wherever one can be found; the answers are its own.

    Attributes:
        replaced: the operations that were given a backward pass, in all passes so far, sorted.
    """

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._replaced: set[str] = set()
        self._inner = InnerLogits()

    @property
    def replaced(self) -> list[str]:
        """The operations that were given another backward pass."""
        return sorted(self._replaced)

    @override
    def __call__(self, inputs: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and inputs.requires_grad):
            with _Recording() as recording:
                logits = self.target(inputs)
            return self._unsquashed(logits, recording)
        with _without_backward_hooks(self.module) as hooks, _Replacing() as replacing:
            logits = self.target(inputs)
        self._replaced |= replacing.replaced | hooks
        logits = self._unsquashed(logits, replacing)
        self._replaced |= _pass_through_own_functions(logits)
        return logits

    def _unsquashed(self, logits: Tensor, recorded: _Recording) -> Tensor:
        inner = self._inner.of(logits, [scores for scores in recorded.scores if scores is not logits])
        if inner is None:
            return logits
        self._replaced.add("squashed logits")
        return inner.to(logits.dtype)


def _pass_through_own_functions(logits: Tensor) -> set[str]:
    """Give every autograd.Function written in Python in the graph of ``logits`` the identity's gradient, where the shapes are equal."""
    found: set[str] = set()
    pending, seen = [logits.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        pending += [following for following, _ in node.next_functions]
        if isinstance(node, BackwardCFunction):
            found.add(type(node).__name__.removesuffix("Backward"))
            node.register_hook(_identity)
    return found


def _identity(given: tuple[Tensor | None, ...], upstream: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...] | None:
    """A node's hook: the gradient of what it returned becomes that of its first differentiable argument of the same shape."""
    for position, gradient in enumerate(given):
        if gradient is not None and upstream[0] is not None and gradient.shape == upstream[0].shape:
            return (*given[:position], upstream[0], *given[position + 1 :])
    return None


@contextmanager
def _without_backward_hooks(module: nn.Module) -> Iterator[set[str]]:
    """Take the hooks on gradients from all submodules for the block; gives {"hook"} where there were any."""
    taken = [
        (hooks, dict(hooks))
        for child in module.modules()
        for hooks in (child._backward_hooks, child._backward_pre_hooks)
        if hooks
    ]
    for hooks, _ in taken:
        hooks.clear()
    try:
        yield {"hook"} if taken else set()
    finally:
        for hooks, kept in taken:
            hooks.update(kept)
