"""The residual streams of a language model: what enters its blocks, read or replaced during a pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeAlias

from robustkd.contracts import TargetError
from robustkd.lazy import nn, torch
from robustkd.targets.activations import InputHook, input_hooks, output_hooks
from robustkd.targets.frozen import frozen

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.targets.causal_lm import CausalLMTarget
    from robustkd.targets.chat import TokenBatch

Change: TypeAlias = "Callable[[int, Tensor], Tensor]"
"""``change(number, stream)``: what takes the place of the (B, T, D) stream that enters the block of that number."""


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a language model, in order.

    Raises:
        TargetError: they cannot be told.
    """
    count = module.config.get_text_config().num_hidden_layers  # type: ignore[operator, union-attr]
    for part in module.modules():
        if isinstance(part, nn.ModuleList) and len(part) == count:
            return list(part)
    raise TargetError(
        f"{type(module).__name__} shows no list of {count} blocks",
        fix="this method is for models that keep their blocks in one list; take one that leaves the blocks alone, such as c-advul",
    )


def replacing(blocks: Sequence[nn.Module], change: Change) -> AbstractContextManager[None]:
    """While it lasts, ``change(number, stream)`` takes the place of the (B, T, D) stream that enters each of ``blocks``."""

    def hook(number: int) -> InputHook:
        return lambda block, entering: (change(number, entering[0]), *entering[1:])

    return input_hooks(blocks, [hook(number) for number in range(len(blocks))])


def entering(target: CausalLMTarget, batch: TokenBatch, blocks: Sequence[nn.Module]) -> Tensor:
    """(B, L, T, D) float32: what enters each of L blocks when nothing is moved, differentiable where gradients are recorded."""
    seen: dict[int, Tensor] = {}

    def look(number: int, stream: Tensor) -> Tensor:
        seen[number] = stream.float()
        return stream

    with replacing(blocks, look):
        target.module(input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False, logits_to_keep=1)
    return torch.stack([seen[number] for number in range(len(blocks))], 1)


def streams(target: CausalLMTarget, batch: TokenBatch) -> Tensor:
    """(B, L + 1, T, D) float32: what enters the first of L blocks, and what leaves each of them."""
    blocks, seen = blocks_of(target.module), list[torch.Tensor]()

    def look(block: nn.Module, given: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).float())

    with output_hooks(blocks, [look] * len(blocks)):
        first = entering(target, batch, blocks[:1])
    return torch.cat([first, torch.stack(seen, 1)], 1)


def entering_unmoved(target: CausalLMTarget, batch: TokenBatch, blocks: Sequence[nn.Module]) -> Tensor:
    """``entering`` without a graph, in evaluation mode; the target is left as found."""
    with frozen(target.module), torch.no_grad():
        return entering(target, batch, blocks)
