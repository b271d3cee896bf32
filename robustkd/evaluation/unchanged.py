"""Whether an attack left the model as it was, in which what counts is what the model answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from robustkd.contracts import AttackError, BaseAttack, BaseTarget, TargetError
from robustkd.lazy import torch
from robustkd.targets.files import tensor_bytes

if TYPE_CHECKING:
    from torch import Tensor

Answers = TypeVar("Answers")


class State(NamedTuple):
    """A fingerprint of all that an attack must leave as it is.

    Attributes:
        settings: modes, flags and weights. A tensor's version counts its in-place writes, so no copy is needed.
        buffers: their contents, since batch normalisation writes past the version.
    """

    settings: list[tuple[object, ...]]
    buffers: list[tuple[str, bytes]]


def state_of(target: BaseTarget) -> State:
    """The state of a target's network."""
    module = target.module
    weights = [
        (name, id(weight), weight._version, weight.requires_grad, weight.is_leaf) for name, weight in module.named_parameters()
    ]
    modes = [(name, getattr(part, "training", None)) for name, part in module.named_modules()]
    buffers = [(name, hashlib.sha256(tensor_bytes(buffer)).digest()) for name, buffer in module.named_buffers()]
    return State([*weights, *modes], buffers)


def require_unchanged(
    target: BaseTarget,
    attack: BaseAttack,
    before: State,
    answers: Answers,
    ask: Callable[[], Answers],
    same: Callable[[Answers, Answers], bool],
) -> None:
    """The network is as it was; buffers may differ that do not change its answers, such as a grid for the batch's shape.

    Args:
        before: its state before the attack.
        answers: what it answered to a few inputs before the attack.
        ask: has it answer these again.
        same: whether two such answers are the same.

    Raises:
        AttackError: the attack changed it.
        TargetError: it changes itself when it is run, and its answers with that.
    """
    after = state_of(target)
    if after == before:
        return
    now = ask()
    if after.settings == before.settings and same(now, answers):
        return
    if not same(ask(), now) or after.settings != state_of(target).settings:
        raise TargetError(
            "the model changes its own weights or buffers when it is run, and its answers with them",
            fix="put every part of it into evaluation mode (BatchNorm with batch statistics keeps a running mean)",
        )
    raise AttackError(
        f"{type(attack).__name__} left the model changed (mode, flags, weights or buffers)",
        fix="an attack restores training mode and requires_grad, and never writes weights or BatchNorm statistics",
    )


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether outputs differ by no more than rounding."""
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5)
