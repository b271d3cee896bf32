"""DisWOT: students ranked before any is trained, by how like their untrained networks are to the teacher's.

    score = - mean over draws of  ( || C_T - C_S ||^2 + || R_T - R_S ||^2 )

T and S have fresh weights. C (K x K) is the cosine between the activation maps of every two classes (Grad-CAM: the last convolution's
maps, weighted by the mean gradient of a class's logit), mean over a batch; R (B x B) the cosine between every two samples' maps.

The table sets the score beside what the trained students turn out to be, and beside the number of parameters, the simplest guess. A
ranking of chance correlates within +- ``chance`` in 95 % of its draws.

From the authors: both similarities on fresh networks, and their sum. From us: C between classes, where theirs is between channels and asks
for as many in the student as in the teacher; squared Frobenius norms divided by the number of entries; robust accuracy as what is ranked;
no evolutionary search, since the candidates are the campaign's. The released search takes the gradient of the last linear layer for C and
leaves R out.

Source: Dong, Li, Wei: DisWOT: student architecture search for distillation without training (CVPR 2023), arXiv:2303.15678, equations 1
to 6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from robustkd.analyses.attacked import attack_field, right, standing
from robustkd.analyses.members import first_samples
from robustkd.attacks.image.wrappers.wrapper import AttackSpec
from robustkd.contracts import Analysis, Batch, Params, Table, Target, TargetError, TargetRef, ThreatModel
from robustkd.contracts.random import preserved_rng, seed_torch
from robustkd.lazy import F, nn, torch
from robustkd.scoring.ranks import chance_of_ranks, rank_correlation
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class DisWOTParams(Params):
    """The students, and what they are ranked for."""

    students: tuple[TargetRef, ...] = Field(
        min_length=1, description="trained students of the analysed teacher, each of another architecture"
    )
    attack: AttackSpec = attack_field("the attack of their robust accuracy")
    batch: int = Field(32, ge=2, description="images that the score looks at")
    draws: int = Field(3, ge=1, description="fresh weights of teacher and student")
    samples: int = Field(500, ge=1, description="samples that the students are attacked on, at most")


class DisWOT(Analysis):
    """The students' scores without training beside their size and what they became."""

    Params = DisWOTParams
    inputs = "images"
    source = "Dong, Li & Wei 2023, arXiv:2303.15678"

    def run(self, target: Target, batch: Batch, threat: ThreatModel, seed: int) -> Table:
        """A row for each student; ``metrics``: the rank correlation of score and of size with robust accuracy, where there are three.

        Raises:
            TargetError: teacher or student is no single network with a convolution.
        """
        p, attack = self.params, self.params.attack.make()
        teacher = _network(target, "the teacher")
        samples = first_samples(batch, p.samples)
        images = samples.inputs[: p.batch]
        rows = {}
        for name in p.students:
            student = _network(self.target(name, Target), f"student '{name}'")
            kept = standing(student, attack, samples, threat, seed, f"diswot/{name}")
            clean = right(student, samples.inputs, samples.labels)
            size = sum(weight.numel() for weight in student.module.parameters())
            rows[name] = [score(teacher, student, images, seed, p.draws), size, _share(clean), _share(kept)]
        values = np.array(list(rows.values()), dtype=float)
        metrics = {}
        if len(rows) > 2:
            metrics = {
                "rank_correlation": rank_correlation(values[:, 0], values[:, 3]),
                "rank_correlation_of_size": rank_correlation(values[:, 1], values[:, 3]),
                "chance": chance_of_ranks(len(rows)),
            }
        return Table(
            caption=f"the score of {p.draws} pairs of untrained networks on {len(images)} images, larger is more like the teacher; the "
            f"number of parameters; accuracies of the trained students on {len(samples)} samples, the last under {p.attack.kind}",
            rows=list(rows),
            columns=["score", "parameters", "clean", "robust"],
            values=[[float(value) for value in row] for row in rows.values()],
            metrics=metrics,
        )


def score(teacher: ClassifierTarget, student: ClassifierTarget, images: Tensor, seed: int, draws: int) -> float:
    """The mean over draws of the negative sum of both squared distances; 0 of a student that is drawn as its teacher is."""
    total = 0.0
    for draw in range(draws):
        fresh = []
        for network in (teacher, student):
            with preserved_rng(images.device):
                seed_torch(seed * draws + draw)
                fresh.append(network.untrained().to(images.device))
        (of_classes, of_samples), (theirs, others) = (similarities(network, images) for network in fresh)
        total -= float((of_classes - theirs).square().mean() + (of_samples - others).square().mean())
    return total / draws


def similarities(target: ClassifierTarget, images: Tensor) -> tuple[Tensor, Tensor]:
    """(K, K) C and (B, B) R of the module's formula, in float64."""
    target.module.eval()
    layer = _last_convolution(target)
    with torch.enable_grad():
        captured: dict[str, Tensor] = {}
        hook = dict(target.module.named_modules())[layer].register_forward_hook(
            lambda module, inputs, output: captured.update({layer: output})
        )
        try:
            logits = target(images)
        finally:
            hook.remove()
        features = captured[layer]
        cams = []
        for number, value in enumerate(logits.sum(0)):
            (slope,) = torch.autograd.grad(value, features, retain_graph=number + 1 < logits.shape[1])
            cams.append((slope.mean((2, 3), keepdim=True) * features).sum(1).flatten(1))
    maps = F.normalize(torch.stack(cams, 1).detach().cpu().double(), dim=2)
    samples = F.normalize(features.detach().cpu().double().flatten(1), dim=1)
    return (maps @ maps.transpose(1, 2)).mean(0), samples @ samples.T


def _network(target: Target, who: str) -> ClassifierTarget:
    if not isinstance(target, ClassifierTarget):
        raise TargetError(
            f"{who} is a {target.kind}, and untrained networks are made of single ones", fix="name another defense"
        )
    _last_convolution(target)
    return target


def _last_convolution(target: ClassifierTarget) -> str:
    found = [name for name, part in target.module.named_modules() if isinstance(part, nn.Conv2d)]
    if not found:
        raise TargetError("the network has no convolution, so no maps of its classes", fix="name one of another architecture")
    return found[-1]


def _share(held: Tensor) -> float:
    return float(held.cpu().double().mean())
