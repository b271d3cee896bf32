"""Backward surrogates that are found in a forward pass, not declared: what BPDA needs where nobody says which stage has no gradient.

While a network computes its answer, each operation that cuts or falsifies the gradient keeps its value and is given another
backward pass:

    round, floor, ceil, trunc, sign       the identity
    a > b, a < b, ..                      a sigmoid of a - b, where the answer is used as a number or in ``where``
    argmax, then one_hot                  softmax
    sigmoid and tanh, where most are flat the identity
    detach, .data, no_grad                the gradient that they cut
    a cast to integers                    the identity, where it is cast back
    an autograd.Function of one's own     the identity, where the shape allows it
    hooks on gradients                    none

The value at each point is what it always is. So an adversarial example that is found in this way is one of the network itself.
What is not reached: operations in C++ extensions, in scripted or exported modules, and inside ``torch.inference_mode``.

The idea is that of the straight-through estimator (Bengio, Leonard & Courville 2013, arXiv:1308.3432), used on all such operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

from robustkd.contracts import Target
from robustkd.contracts.target import WrappedTarget
from robustkd.lazy import nn, torch

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
"""The attribute of a tensor without a gradient (a comparison, integers) that holds a differentiable one of about its value."""
_WIDTH = 0.1
"""Of the sigmoid that stands for a comparison, as a share of the mean difference of the two sides."""


def _differentiable(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _with_gradient_of(value: Tensor, smooth: Tensor) -> Tensor:
    """``value``, with the gradient of ``smooth``. The bracket is exactly zero."""
    return value.detach() + (smooth - smooth.detach()).to(value.dtype)


class _Replacing(TorchFunctionMode):
    """Gives the operations of a forward pass their surrogates; ``replaced`` names those that it met."""

    def __init__(self) -> None:
        super().__init__()
        self.replaced: set[str] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
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
        if not isinstance(value, torch.Tensor):
            return value
        if name in _SATURATING and _differentiable(first):
            return self._unsaturated(name, value, first)
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
            return _with_gradient_of(value, first)
        if name in ("floor_divide", "__floordiv__") and (_differentiable(first) or _differentiable(args[1])):
            self.replaced.add("floor_divide")
            return _with_gradient_of(value, args[0] / args[1])
        if name in _ABOVE | _BELOW and any(map(_differentiable, args[:2])):
            difference = args[0] - args[1] if name in _ABOVE else args[1] - args[0]
            width = (_WIDTH * difference.detach().abs().mean()).clamp_min(torch.finfo(difference.dtype).tiny)
            setattr(value, _SMOOTH, (difference / width).sigmoid())
        elif name == "argmax" and _differentiable(first) and (len(args) > 1 or "dim" in kwargs):
            dim = kwargs["dim"] if "dim" in kwargs else args[1]
            setattr(value, _SMOOTH, first.movedim(dim, -1).softmax(-1))
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

    def _number(self, argument: Any) -> Any:
        """A comparison or integers, in arithmetic: as a number with its gradient."""
        smooth = getattr(argument, _SMOOTH, None) if isinstance(argument, torch.Tensor) else None
        if smooth is None or smooth.shape != argument.shape:
            return argument
        self.replaced.add("cast")
        return _with_gradient_of(argument.to(smooth.dtype), smooth)


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

    @property
    def replaced(self) -> list[str]:
        """The operations that were given another backward pass."""
        return sorted(self._replaced)

    def __call__(self, inputs: Tensor) -> Tensor:
        """(B, *shape) -> (B, K)."""
        if not (torch.is_grad_enabled() and inputs.requires_grad):
            logits: Tensor = self.target(inputs)
            return logits
        with _without_backward_hooks(self.module) as hooks, _Replacing() as replacing:
            logits = self.target(inputs)
        self._replaced |= replacing.replaced | hooks | _pass_through_own_functions(logits)
        return logits


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
