"""Certified robustness: the share of samples that no perturbation within the budget can break.

    m_j(x') = z_y(x') - z_j(x') > 0     for every wrong class j and every x' in the ball around x, as far as it is in the range of pixels

Attacks bound robust accuracy from above, a certificate bounds it from below. Each sample is given to ever more costly methods, until
one of them decides it:

    interval     intervals are carried through the layers (IBP)
    crown-ibp    linear bounds, whose lines around activations stand on intervals
    crown        linear bounds, whose lines stand on linear bounds
    exact        a mixed-integer program for each wrong class that is still open, within ``seconds``; small ReLU networks in linf

A smoothed classifier (``randomised-smoothing``) has a certificate of another kind, in l2: a lower confidence bound of how often its network
gives noisy copies the class (``certification.smoothing``). It abstains where that is not above one half, and may be wrong of a sample with
a probability of ``alpha``.

Bounds are computed in double precision. A margin counts as positive where it is above what rounding may make of the logits of a
network in single precision.

Sources: Gowal et al. 2018 (intervals); Zhang et al. 2018 and 2020 (CROWN, CROWN-IBP); Tjeng et al. 2019 (mixed-integer programs).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field
from typing_extensions import override

from robustkd.analyses.members import parts
from robustkd.contracts import Analysis, Batch, Certificate, Params, Table, Target, TargetError, ThreatModel
from robustkd.contracts.threat import PixelBudget
from robustkd.lazy import torch
from robustkd.scoring.intervals import wilson

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.certification.margins import Method
    from robustkd.targets.modules import Smoothed

_BATCH = 32
"""Samples whose coefficients are in memory at once."""


class CertifiedParams(Params):
    method: Literal["interval", "crown-ibp", "crown"] = Field(
        "crown", description="the last of the bounds that are tried, in this order; crown costs most"
    )
    exact: bool = Field(
        False, description="decide what the bounds leave open by mixed-integer programs; small ReLU networks in linf"
    )
    spare: bool = Field(
        True,
        description="whether attacks under the campaign's threat model leave certified samples alone, but for the first 16",
    )
    seconds: float = Field(10.0, gt=0, description="of exact: what the solver may take for one wrong class of one sample")
    samples: int | None = Field(None, ge=1, description="samples at most; default all")
    smoothing_select: int = Field(100, ge=1, description="of a smoothed classifier: noisy copies that choose the class")
    smoothing_draws: int = Field(
        100_000, ge=1, description="of a smoothed classifier: noisy copies that the certificate rests on"
    )
    alpha: float = Field(
        0.001, gt=0, lt=1, description="of a smoothed classifier: the probability at which a certificate may be wrong"
    )


class Certified(Analysis):
    """What no attack can break, sample by sample."""

    Params = CertifiedParams
    source = "Gowal et al. 2018, arXiv:1810.12715; Zhang et al. 2018, arXiv:1811.00866; Zhang et al. 2020, arXiv:1906.06316"

    @property
    @override
    def spares_attacks(self) -> bool:
        return self.params.spare

    def run(self, target: Target, batch: Batch, threat: ThreatModel, seed: int) -> Table:
        """The share that is certified after each method; ``metrics``: the certified accuracy.

        Raises:
            TargetError: the network has a layer that no bounds are known of, or the threat model is no ball in linf or l2.
            AttackError: ``exact``, and the network is not made of affine layers and ReLUs.
        """
        from robustkd.certification.samples import Certifier  # late: it imports torch
        from robustkd.targets.modules import Smoothed

        p = self.params
        norm = _norm(threat)
        samples = batch if p.samples is None else batch.select(slice(0, p.samples))
        if isinstance(target.module, Smoothed):
            return self._smoothed(target.module, samples, threat, seed)
        certifier = Certifier(target, norm, exact=p.exact)
        rows: list[str] = []
        values: list[list[float]] = []
        right = self._clean(target, samples)
        robust, broken = torch.zeros_like(right), torch.zeros_like(right)
        for method in _up_to(p.method):
            for part, where in _open(samples, right & ~robust & ~broken):
                robust[where] = certifier.robust(part, part.budget(threat), method).cpu()
            rows.append(method)
            values.append(_row(robust, broken))
        if p.exact:
            for part, where in _open(samples, right & ~robust & ~broken, 1):
                proved, refuted = certifier.exactly(part, part.budget(threat), p.seconds)
                robust[where], broken[where] = proved, refuted
            rows.append("exact")
            values.append(_row(robust, broken))
        count, n = int(robust.sum()), len(samples)
        left = int((right & ~robust & ~broken).sum())
        return Table(
            caption=f"of {n} samples, the share that is certified under {threat.plain} once the methods down to the row's are tried, "
            f"its 95 % interval, and the share that is shown to be breakable; {left} are open",
            rows=rows,
            columns=["certified", "at least", "at most", "broken"],
            values=values,
            metrics={"certified_accuracy": count / n, "certified_or_broken": (n - left) / n},
            certificate=Certificate(robust.tolist(), (broken | ~right).tolist()),
        )

    def _smoothed(self, module: Smoothed, samples: Batch, threat: ThreatModel, seed: int) -> Table:
        """The table of a smoothed classifier, whose certificates rest on draws.

        Raises:
            TargetError: the threat model is no ball in l2.
        """
        from robustkd.certification.smoothing import ABSTAINS, certify  # late: it imports torch

        p, budgets = self.params, samples.budget(threat).tolist()
        if threat.norm != "l2":
            raise TargetError(
                f"a smoothed classifier is certified in l2, and the threat model is {threat.plain}", fix="use norm: l2"
            )
        found = [
            certify(
                module.base,
                samples.inputs[row],
                int(samples.index[row]),
                sigma=module.sigma,
                select=p.smoothing_select,
                draws=p.smoothing_draws,
                alpha=p.alpha,
                seed=seed,
            )
            for row in range(len(samples))
        ]
        labels = samples.labels.tolist()
        right = [one.predicted == label for one, label in zip(found, labels, strict=True)]
        robust = [hit and one.radius > eps for hit, one, eps in zip(right, found, budgets, strict=True)]
        n, abstained = len(samples), sum(one.predicted == ABSTAINS for one in found)
        radii = [one.radius for one, hit in zip(found, right, strict=True) if hit]
        return Table(
            caption=f"of {n} samples, the share that is certified under {threat.plain} by {p.smoothing_draws} draws of noise "
            f"{module.sigma:g}, each with an error of at most {p.alpha:g}, and its 95 % interval; on {abstained} it abstains",
            rows=["smoothing"],
            columns=["certified", "at least", "at most", "abstains"],
            values=[[sum(robust) / n, *wilson(sum(robust), n), abstained / n]],
            metrics={
                "certified_accuracy": sum(robust) / n,
                "abstained": abstained / n,
                "mean_certified_radius": sum(radii) / n,
            },
            certificate=Certificate(robust, [False] * n, p.alpha),
        )

    @staticmethod
    def _clean(target: Target, samples: Batch) -> Tensor:
        """(N,) bool, classified rightly."""
        logits = samples.logits
        if logits is None:
            with torch.no_grad():
                logits = torch.cat([target(part.inputs) for part in parts(samples)])
        return (logits.argmax(1) == samples.labels).cpu()


def _norm(threat: ThreatModel) -> Literal["linf", "l2"]:
    """The norm of a threat model that bounds are known for.

    Raises:
        TargetError: it is none.
    """
    budget = threat.budget
    if isinstance(budget, PixelBudget) and budget.where is None:
        for norm in ("linf", "l2"):
            if budget.norm == norm:
                return norm
    raise TargetError(
        f"'certified' knows bounds over balls in linf and l2, and the threat model is {threat.plain}",
        fix="leave the analysis out, or use norm: linf or l2 without a region",
    )


def _up_to(last: Method) -> tuple[Method, ...]:
    methods: tuple[Method, ...] = ("interval", "crown-ibp", "crown")
    return methods[: methods.index(last) + 1]


def _open(samples: Batch, left: Tensor, size: int = _BATCH) -> list[tuple[Batch, Tensor]]:
    """The samples that are left, in pieces, with their positions."""
    where = left.nonzero().squeeze(1)
    return [(samples.select(part.to(samples.labels.device)), part) for part in where.split(size) if len(part)]


def _row(robust: Tensor, broken: Tensor) -> list[float]:
    count, n = int(robust.sum()), len(robust)
    return [count / n, *wilson(count, n), int(broken.sum()) / n]
