"""EOT around any attack: a randomised defense is attacked through its mean output.

    f(x) = E_t[ logits_t(x) ],  estimated with n passes, so that  grad f(x) = 1/n * sum_i grad logits_{t_i}(x)

Without it an attack on a network that draws random numbers follows the noise of a single draw.

Good for anything that draws random numbers. It costs n times the passes; too small an n leaves the noise in the gradient.

Source: Athalye, Engstrom, Ilyas, Kwok: Synthesizing robust adversarial examples (ICML 2018), section 2; as a way around
randomised defenses, Athalye, Carlini, Wagner: Obfuscated gradients give a false sense of security (ICML 2018), section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.image.wrappers.wrapper import Wrapper, WrapperParams
from robustkd.contracts import AttackResult, Batch, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.contracts.target import WrappedTarget
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class MeanTarget(WrappedTarget):
    """A target whose output is the mean over ``samples`` passes. All of them are in one graph: memory grows with them."""

    def __init__(self, target: Target, samples: int) -> None:
        super().__init__(target)
        self.samples = samples
        self.members = [MeanTarget(member, samples) for member in target.members]

    def __call__(self, inputs: Tensor) -> Tensor:
        """(B, *shape) -> (B, K), the mean logits."""
        return torch.stack([self.target(inputs) for _ in range(self.samples)]).mean(0)


class EOTParams(WrapperParams):
    """The attack that is wrapped, and over how many passes its gradients are averaged."""

    samples: int = Field(10, ge=1, description="passes that make up one query")


class EOT(Wrapper):
    """Expectation over transformation, around another attack."""

    Params = EOTParams
    averages = True
    source = "Athalye et al. 2018, arXiv:1707.07397 and arXiv:1802.00420"

    @contextmanager
    @override
    def wrapped_target(self, target: Target) -> Iterator[Target]:
        yield MeanTarget(target, self.params.samples)

    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        """Takes ``samples`` times the passes of the wrapped attack."""
        samples, result = self.params.samples, super().run(target, batch, threat, rng)
        skipped = None if result.skipped is None else samples * result.skipped
        return replace(result, forwards=samples * result.forwards, backwards=samples * result.backwards, skipped=skipped)
