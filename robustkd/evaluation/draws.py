"""Targets that draw random numbers (dropout at test time, noise, random resizing): recognised, and run on several draws.

Draw r of a batch is made after seeding every generator that the target may use with a seed of r and of the batch. So a clean
and an attacked input are seen under the same random numbers, and what differs between the two is the attack's doing alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from robustkd.contracts import BaseTarget, Target
from robustkd.contracts.random import seed_global, seeded
from robustkd.lazy import torch
from robustkd.targets.frozen import parts_of

if TYPE_CHECKING:
    from torch import Tensor

DRAWS = 10
"""How many draws a sample is judged on, clean and attacked, if the target draws random numbers."""
PROBED = 256
"""How many samples are passed twice to see whether a target draws random numbers. A target in which one output in a hundred is
changed by chance is recognised with a probability of 99 %."""
ROUNDING = 1e-4
"""Outputs of two passes that differ by no more than this share of their size differ by rounding."""


@contextmanager
def seeded_target(target: BaseTarget, seed: int) -> Iterator[Callable[[int], None]]:
    """Seed what a target may draw from: the global generators and those of its own modules; all are restored.

    Yields a function that seeds them anew: in a block for each seed, the generators would be saved and restored between two.
    """
    # Not isinstance: that of a generator is Python code, which for all that a network has costs as much as a pass.
    parts = parts_of(target.module)
    owned = [part for module in parts for part in vars(module).values() if issubclass(type(part), torch.Generator)]
    states = [generator.get_state() for generator in owned]

    def seed_all(number: int) -> None:
        seed_global(number)
        for generator in owned:
            generator.manual_seed(number)

    with seeded(seed):
        for generator in owned:
            generator.manual_seed(seed)
        try:
            yield seed_all
        finally:
            for generator, state in zip(owned, states, strict=True):
                generator.set_state(state)


def logits_unless_random(target: Target, inputs: Tensor) -> Tensor | None:
    """The (B, K) logits of the (B, *shape) inputs; None where two passes, made under different seeds, differ by more than rounding."""
    with seeded_target(target, 1) as seed_again:
        first = target(inputs)
        seed_again(2)
        second = target(inputs)
    return None if bool((first - second).abs().amax() > ROUNDING * first.abs().amax()) else first


def drawn_logits(target: Target, inputs: Tensor, index: Tensor) -> Tensor:
    """(B, *shape) -> (B, ``DRAWS``, K), the logits of several draws.

    Args:
        index: (B,) positions of the samples; the same samples get the same draws.
    """
    first = int(index[0]) * DRAWS if len(index) else 0
    draws = []
    with seeded_target(target, first) as seed_again:
        for draw in range(DRAWS):
            seed_again(first + draw)
            draws.append(target(inputs))
    return torch.stack(draws, 1)
