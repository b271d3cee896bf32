"""A check that compares an attack with random noise of the same size."""

from __future__ import annotations

from pydantic import Field

from robustkd.checks.probe import SMALL, random_points, survivors
from robustkd.contracts import Check, CheckContext, Finding, Params
from robustkd.contracts.random import SampleRng
from robustkd.lazy import torch


class NoiseBeatsAttackParams(Params):
    samples: int = Field(32, ge=1, description="survivors that are looked at")
    points: int = Field(10_000, ge=1, description="random points in the ball of each")


class NoiseBeatsAttack(Check):
    """Does blind guessing find what the attacks did not?

    Every attack is a guided search; if 10,000 unguided points of the same ball contain an adversarial example, the guide is
    broken. Where gradients are honest this does not happen: in d dimensions the adversarial part of a ball whose centre an attack
    cannot move is too small to be met by chance.
    """

    Params = NoiseBeatsAttackParams
    severity = "severe"
    rule = "10,000 random points in the ball contain an adversarial example for over 0.2 % of the survivors looked at"
    needs_norm = True
    source = "Athalye et al. 2018, Obfuscated gradients, section 3.1; Carlini et al. 2019; the threshold is ours"
    thorough = True
    cost = "10,000 forward passes a survivor, on 32 survivors"

    def run(self, context: CheckContext) -> Finding:
        """Draw points around each survivor until one is adversarial."""
        attacks = context.headline
        if not attacks or context.threat.norm == "l0":
            return self.not_applicable("it draws from the ball of a finished attack's survivors, in linf, l2 or l1")
        batch = survivors(context, attacks, self.params.samples)
        if not len(batch):
            return self.not_applicable("no sample is left standing")
        bounds = context.target.bounds
        standing = torch.ones(len(batch), dtype=torch.bool)
        chunk = 500
        with torch.no_grad():
            for row in range(len(batch)):
                at = torch.tensor([row], device=batch.inputs.device)
                rng = SampleRng(context.seed, torch.arange(chunk, device=batch.inputs.device), f"noise/{int(batch.index[row])}")
                centre = batch.inputs[row : row + 1].expand(chunk, *batch.inputs.shape[1:])
                for start in range(0, self.params.points, chunk):
                    points = random_points(centre, context.threat.eps, context.threat.norm, rng, bounds)
                    found = batch.select(at).reached(context.target(points[: self.params.points - start]).argmax(1))
                    if bool(found.any()):
                        standing[row] = False
                        break
        broken = int((~standing).sum())
        return self.finding(
            broken / len(batch) > SMALL,
            fix="the attack is weaker than guessing: look for a wrong sign, a wrong unit of eps or a masked gradient",
            explanation=f"random points break {broken} of {len(batch)} samples that {', '.join(a.name for a in attacks)} left standing",
            remedies=[{"kind": "square", "queries": 1000}],
            broken_by_noise=broken,
            points=self.params.points,
            n=len(batch),
        )
