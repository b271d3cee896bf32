"""Teacher entropy: how sure a robust teacher is on the samples that no robust model gets right.

    U = samples that every reference loses under attack,     H = mean over U of - sum_k p_k log p_k,   p = softmax T(x)

A teacher that is sure of its answers on U teaches what no student can keep to; one that is unsure leaves the student alone there. So the
entropy on U is said to tell more of a student's robustness than the teacher's own does: made of several teachers, the table says which to
distil from, before a student is trained.

Controls: the same entropy on the other samples, and log K, that of a teacher who knows nothing. The references should not be the teacher
alone: its own failures are no property of the data.

Source: Why robust teachers fail (ICML 2026), arXiv:2605.21999; read in the abstract only. The attack and the references are ours.
"""

from __future__ import annotations

import math

from pydantic import Field

from robustkd.analyses.attacked import attack_field, right, standing
from robustkd.analyses.members import first_samples, parts
from robustkd.attacks.image.wrappers.wrapper import AttackSpec
from robustkd.contracts import Analysis, Batch, Params, Table, Target, TargetRef, ThreatModel
from robustkd.lazy import torch


class TeacherEntropyParams(Params):
    """The references, and how they are attacked."""

    references: tuple[TargetRef, ...] = Field(min_length=1, description="robust defenses; what all of them lose is unlearnable")
    attack: AttackSpec = attack_field("the attack that they lose to: its kind and parameters")
    samples: int = Field(500, ge=1, description="samples at most")


class TeacherEntropy(Analysis):
    """The entropy of the model's answers where no reference stands, and where one does."""

    Params = TeacherEntropyParams
    source = "Why robust teachers fail (ICML 2026), arXiv:2605.21999"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, seed: int) -> Table:
        """A row for the samples that no reference keeps, one for the others, one for all, of those that there are; ``metrics``: the
        entropy of each, and the share of samples that no reference keeps.
        """
        p = self.params
        samples = first_samples(batch, p.samples)
        attack = p.attack.make()
        kept = torch.zeros(len(samples), dtype=torch.bool, device=samples.inputs.device)
        for name in p.references:
            kept |= standing(self.target(name, Target), attack, samples, threat, seed, f"teacher-entropy/{name}")
        with torch.no_grad():
            log_p = torch.cat([target(part.inputs) for part in parts(samples)]).cpu().double().log_softmax(1)
        entropy = -(log_p.exp() * log_p).sum(1)
        mine, kept = right(target, samples.inputs, samples.labels).cpu(), kept.cpu()
        rows = {"no reference stands": ~kept, "a reference stands": kept, "all": torch.ones_like(kept)}
        there = {name: inside for name, inside in rows.items() if bool(inside.any())}
        means = {name: float(entropy[inside].mean()) for name, inside in there.items()}
        names = {"no reference stands": "entropy_unlearnable", "a reference stands": "entropy_learnable", "all": "entropy"}
        return Table(
            caption=f"mean entropy in nats (of no knowledge {math.log(log_p.shape[1]):.3g}) and clean accuracy on the samples that none of "
            f"{', '.join(p.references)} keeps under {p.attack.kind}, and on the others, of {len(samples)}",
            rows=list(there),
            columns=["n", "entropy", "clean accuracy"],
            values=[[int(inside.sum()), means[name], float(mine[inside].double().mean())] for name, inside in there.items()],
            metrics={"unlearnable": float((~kept).double().mean()), **{names[name]: value for name, value in means.items()}},
        )
