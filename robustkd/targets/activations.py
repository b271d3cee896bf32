"""Activations inside a network: read, or replaced, during a forward pass.

Two rules say which linear layer is the last. ``last_linear`` takes the one that was registered last: it needs no forward pass, so
layers can be built on its width before there is one. ``classifier_layers`` looks at what a pass calls, which is right for every
network (the order of registration is not that of calls, and an ensemble has several), and is what a check must use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from robustkd.contracts import Target, TargetError
from robustkd.lazy import nn, torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

OutputHook: TypeAlias = "Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]"
"""Called with a module, its arguments and its output; what it returns, if anything, takes the output's place."""
InputHook: TypeAlias = "Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]"
"""Called with a module and its arguments; what it returns, if anything, takes the arguments' place."""


@contextmanager
def _until_the_end(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Keep hooks until the end of the block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def output_hooks(modules: Sequence[nn.Module], hooks: Sequence[OutputHook]) -> Iterator[None]:
    """Call ``hooks``, one for each of ``modules``, after these until the end of the block."""
    with _until_the_end([module.register_forward_hook(hook) for module, hook in zip(modules, hooks, strict=True)]):
        yield


@contextmanager
def input_hooks(modules: Sequence[nn.Module], hooks: Sequence[InputHook]) -> Iterator[None]:
    """Call ``hooks``, one for each of ``modules``, before these until the end of the block."""
    with _until_the_end([module.register_forward_pre_hook(hook) for module, hook in zip(modules, hooks, strict=True)]):
        yield


def submodules(module: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """The submodules of these names; "" is the module itself.

    Raises:
        TargetError: there is no submodule of that name.
    """
    found = dict(module.named_modules())
    if missing := [name for name in names if name not in found]:
        known = ", ".join(name for name in found if name)
        raise TargetError(f"the model has no layer '{missing[0]}'", fix=f"one of: {known}")
    return [found[name] for name in names]


def layer_outputs(target: Target, inputs: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """The outputs of named submodules when ``target`` answers ``inputs``.

    Raises:
        TargetError: there is no submodule of that name.
    """
    captured: dict[str, Tensor] = {}

    def keep(layer: str) -> OutputHook:
        return lambda module, arguments, output: captured.update({layer: output})

    with output_hooks(submodules(target.module, layers), [keep(layer) for layer in layers]):
        target(inputs)
    return captured


class InputRecorder:
    """Records what a layer is given, in the block of ``with``."""

    def __init__(self, layer: nn.Module) -> None:
        self._seen: list[Tensor] = []
        self._hooks = input_hooks([layer], [lambda layer, arguments: self._seen.append(arguments[0])])

    def __enter__(self) -> InputRecorder:
        self._hooks.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self._hooks.__exit__(*details)

    def last(self, count: int) -> Tensor:
        """(count, ..) of the samples that went through last; the network may have been called with a part of them at a time."""
        return torch.cat(self._seen)[-count:]


def with_penultimate(target: Target, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(B, K) logits, and the (B, D) features that the last linear layer makes them of."""
    with InputRecorder(last_linear(target.module)) as features:
        logits = target(inputs)
    return logits, features.last(len(inputs)).flatten(1)


def last_linear(module: nn.Module) -> nn.Linear:
    """The linear layer that was registered last.

    Raises:
        TargetError: there is none.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise TargetError(
            "the model has no linear layer, so no features before it",
            fix="use a model that ends in one, or name a layer if there is such a parameter",
        )
    return layers[-1]


def classifier_layers(target: Target, inputs: Tensor, num_classes: int) -> list[nn.Linear]:
    """The linear layers that turn one feature vector a sample into an output for each class, as often as a pass calls them."""
    seen: list[nn.Linear] = []

    def note(layer: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        if isinstance(layer, nn.Linear) and arguments[0].ndim == 2 and output.shape[1] == num_classes:
            seen.append(layer)

    layers = [layer for layer in target.module.modules() if isinstance(layer, nn.Linear)]
    with output_hooks(layers, [note] * len(layers)), torch.no_grad():
        target(inputs)
    return seen


@contextmanager
def recorded(root: nn.Module, layers: Sequence[nn.Module], *, inputs: bool = False) -> Iterator[Activations]:
    """What layers give, or with ``inputs`` what they are given, in the passes of ``root`` within the block."""
    found = Activations(len(layers))
    begin, end = input_hooks([root], [found.begin]), output_hooks([root], [found.end])
    inside = (
        input_hooks(layers, [found.of_input(number) for number in range(len(layers))])
        if inputs
        else output_hooks(layers, [found.of_output(number) for number in range(len(layers))])
    )
    with begin, inside, end:
        yield found


class Activations:
    """What ``count`` layers took or gave in the passes of a network, in order; of a pass that was begun anew, the last one's."""

    def __init__(self, count: int) -> None:
        self._whole: list[list[Tensor]] = [[] for _ in range(count)]
        self._now: list[list[Tensor]] = [[] for _ in range(count)]

    def begin(self, root: nn.Module, arguments: tuple[Any, ...]) -> None:
        """A pass of the network begins; of one that failed nothing is kept."""
        for parts in self._now:
            parts.clear()

    def end(self, root: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        """Called when a forward pass has ended."""
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
        """Of each layer, what it took or gave since this was asked last, for ``count`` inputs in one or several passes.

        Raises:
            TargetError: that is not one row for each.
        """
        # The parts of an ensemble are called without it: their passes have no end.
        found = [[*whole, *now] for whole, now in zip(self._whole, self._now, strict=True)]
        for kept in (*self._whole, *self._now):
            kept.clear()
        if any(sum(map(len, parts)) != count for parts in found):
            raise TargetError(
                "a layer that is looked at does not give one row for each input in a pass",
                fix="name submodules that are called once, with the samples first",
            )
        return [torch.cat(parts) for parts in found]

    def _keep(self, number: int, value: Any) -> None:
        if isinstance(value, tuple) and value:
            (value, *_) = value  # a transformer's block gives its attention weights beside the features
        if isinstance(value, torch.Tensor) and value.ndim >= 2:
            self._now[number].append(value.clone())
