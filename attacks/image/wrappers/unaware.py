"""Unaware of the detector: any attack, on the classifier of a target that rejects inputs.

    x' = A(f),   judged by f and its detector together

It is how most detectors were published, and what an adaptive attack is to be compared with. A target of robustkd that rejects inputs
is attacked as a whole by every other attack: its last output says that an input is rejected, and no loss leads there.

Control for every attack on a detector: where the two numbers differ, the detector stopped those alone who did not know it. Where the
target rejects nothing, it is the attack itself.

Source: Carlini & Wagner: Adversarial examples are not easily detected (AISec 2017), arXiv:1705.07263, section 2.2, the zero-knowledge
adversary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from typing_extensions import override

from robustkd.attacks.image.wrappers.wrapper import Wrapper, WrapperParams
from robustkd.contracts import AttackResult, Batch, Target, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.targets.rejection import classifier_alone


class UnawareParams(WrapperParams):
    """The attack that is wrapped."""


class Unaware(Wrapper):
    """Another attack, which does not know that the target rejects inputs."""

    Params = UnawareParams
    knows_rejection = False
    source = "Carlini & Wagner 2017, arXiv:1705.07263"

    @contextmanager
    @override
    def wrapped_target(self, target: Target) -> Iterator[Target]:
        yield classifier_alone(target)

    @override
    def run(self, target: Target, batch: Batch, threat: ThreatModel, rng: SampleRng) -> AttackResult:
        if batch.logits is not None and target.rejects:
            batch = replace(batch, logits=batch.logits[:, :-1], rejection=None)
        return super().run(target, batch, threat, rng)
