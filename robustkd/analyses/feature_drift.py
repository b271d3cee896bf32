"""Feature drift: how far an attack moves what a network's last layer is given.

    d(x) = || f(x') - f(x) || / || f(x) ||,      x' the attack's, or a random point of the ball

f is the penultimate layer. A network whose features hardly move is robust whatever stands on them; one whose features move as far under
random noise as under attack is merely noisy, so the second row is the control.

Source: this package; the quantity is usual in work on robust representations.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.analyses.attacked import adversarial, attack_field
from robustkd.analyses.members import first_samples, parts
from robustkd.attacks.image.engine.ball import Ball
from robustkd.attacks.image.wrappers.transfer import Surrogate
from robustkd.attacks.image.wrappers.wrapper import AttackSpec
from robustkd.contracts import Analysis, Batch, Params, Table, Target, TargetError, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch
from robustkd.targets.activations import with_penultimate

if TYPE_CHECKING:
    from torch import Tensor


class FeatureDriftParams(Params):
    attack: AttackSpec = attack_field("the attack; it goes on to its last step on each image")
    samples: int = Field(500, ge=1, description="images at most")


class FeatureDrift(Analysis):
    """How far features move under attack, and under random noise of the same size."""

    Params = FeatureDriftParams
    source = "this package"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, seed: int) -> Table:
        """Quartiles over the images; ``metrics``: both medians.

        Raises:
            TargetError: the network has no linear layer, or the attack cannot be used under the threat model.
        """
        attack = self.params.attack.make()
        if reason := attack.refusal(threat):
            raise TargetError(f"the attack of feature-drift {reason}", fix="use a threat model in a norm, or another attack")
        samples = first_samples(batch, self.params.samples)
        samples = replace(samples, logits=None, eps=None)
        attacked = adversarial(Surrogate(target), attack, samples, threat, seed, "feature-drift")
        ball = Ball.around(samples.inputs, threat.eps, threat.norm, target.bounds)
        noisy = ball.random_point(SampleRng(seed, samples.index, "feature-drift/noise"))
        before = _features(target, samples, samples.inputs)
        drifts = [_drift(_features(target, samples, x), before) for x in (attacked, noisy)]
        quartiles = [torch.quantile(drift, torch.tensor([0.25, 0.5, 0.75], dtype=drift.dtype)).tolist() for drift in drifts]
        return Table(
            caption=f"how far the {before.shape[1]} features before the last layer move, to their length, of {len(samples)} images: "
            f"quartiles, {threat.norm}, eps {threat.eps:.4g}",
            rows=[self.params.attack.kind, "random noise"],
            columns=["25 %", "median", "75 %"],
            values=quartiles,
            metrics={"feature_drift": quartiles[0][1], "feature_drift_of_noise": quartiles[1][1]},
        )


def _features(target: Target, samples: Batch, inputs: Tensor) -> Tensor:
    """(N, D) on the CPU, in double precision."""
    with torch.no_grad():
        found = [with_penultimate(target, part.inputs)[1].cpu().double() for part in parts(replace(samples, inputs=inputs))]
    return torch.cat(found)


def _drift(after: Tensor, before: Tensor) -> Tensor:
    length = torch.linalg.vector_norm
    drift: Tensor = length(after - before, dim=1) / length(before, dim=1).clamp_min(1e-12)
    return drift
