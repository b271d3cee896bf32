"""Passes that CUDA replays in one piece (CUDA graphs), for networks and batches so small that the GPU waits for the next kernel.

A step of an attack on few images is hundreds of small kernels forward and backward, each of them started by the CPU. A graph of them is
started at once. It is recorded for one shape of inputs, so it pays where many steps are made with as many samples, as at the end of an
attack, when those that stand are few. What the network does in Python beside its kernels is done while the graph is recorded and never
again; so only networks are replayed that are made of known layers, and none that is watched by hooks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from robustkd.contracts import Target
from robustkd.lazy import torch
from robustkd.targets import ClassifierTarget, SplitTarget
from robustkd.targets.frozen import parts_of

if TYPE_CHECKING:
    from torch import Tensor, nn

Pass: TypeAlias = "Callable[[Tensor], Tensor]"
"""(B, *shape) images -> (B, K) outputs with a graph of gradients."""

_KNOWN = ("torch.nn.", "torchvision.", "timm.", "robustkd.models.")
_PATIENCE = 4
"""How often a shape must have come before it is recorded: recording takes about as long as three passes."""
_KEPT = 4
"""How many shapes are kept."""
_LIKE = 1e-3
"""How far a replay's outputs may be from those of the network, as a share of the largest: it may have chosen other kernels."""


class Replays:
    """A target whose passes with gradients are replayed, where that saves time. To be used inside ``frozen(target.module)``.

    Args:
        target: one that ``replayed`` finds fit for it.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._came: Counter[torch.Size] = Counter()
        self._recorded: dict[torch.Size, Pass] = {}
        self._refused = False

    def __call__(self, x: Tensor) -> Tensor:
        """(B, *shape) -> (B, K), what the target returns."""
        if self._refused or not x.requires_grad or not torch.is_grad_enabled():
            return self._target(x)
        replay = self._recorded.get(x.shape)
        if replay is None:
            self._came[x.shape] += 1
            if self._came[x.shape] <= _PATIENCE:
                return self._target(x)
            replay = self._record(x)
        return replay(x)

    def _record(self, x: Tensor) -> Pass:
        """The pass at this shape from now on: a replay, or the target's own where that waits for the GPU anyway."""
        expected, worth = _timed(self._target, x)
        replay: Pass = self._target
        if worth:
            try:
                graph = recorded(self._target, x)
                if (graph(x).detach() - expected).abs().max() <= _LIKE * expected.abs().max():
                    replay = graph
                else:  # it draws random numbers, or keeps something between its passes
                    self._refused = True
            except RuntimeError:  # it looks at values on its way, for example
                torch.cuda.synchronize(x.device)
                self._refused = True
        if len(self._recorded) >= _KEPT:
            del self._recorded[next(iter(self._recorded))]
        self._recorded[x.shape] = replay
        return replay


def replayed(target: Target, x: Tensor) -> Pass:
    """The target's passes at images like ``x``, for a search of many steps: with replays on CUDA, if it is made of known layers alone, and
    none has hooks; else the target itself.
    """
    plain = target.target if isinstance(target, SplitTarget) else target
    fit = _on_cuda(x) and type(plain) is ClassifierTarget and target.precision == "full"
    if not fit or torch.is_autocast_enabled("cuda") or not all(_is_known(part) for part in parts_of(target.module)):
        return target
    return Replays(target)


def _on_cuda(x: Tensor) -> bool:
    return x.is_cuda


def _is_known(part: nn.Module) -> bool:
    kind = type(part)
    hooks: Any = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
    return f"{kind.__module__}.".startswith(_KNOWN) and "forward" not in vars(part) and not part.training and not any(hooks)


def _timed(target: Target, x: Tensor) -> tuple[Tensor, bool]:
    """The target's outputs, and whether a pass is done on the GPU about when the CPU has started its last kernel."""
    torch.cuda.synchronize(x.device)
    began = time.perf_counter()
    outputs = target(x)
    torch.autograd.grad(outputs.sum(), x)
    started = time.perf_counter()
    torch.cuda.synchronize(x.device)
    return outputs.detach(), time.perf_counter() - started < (started - began) / 2


def recorded(target: Target, x: Tensor) -> Pass:
    """The target's passes at inputs of the shape of ``x``: a CUDA graph of the one forward, and one of the one backward.

    Raises:
        RuntimeError: it does what cannot be recorded.
    """

    def outputs(images: Tensor) -> Tensor:
        return target(images)

    sample = x.detach().clone().requires_grad_()
    graphed: Any = torch.cuda.make_graphed_callables(outputs, (sample,), num_warmup_iters=1)

    def replay(images: Tensor) -> Tensor:
        copied: Tensor = graphed(images).clone()  # the next replay writes into the same memory
        return copied

    return replay
