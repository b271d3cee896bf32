"""Peers that attack several networks which answer together."""

from __future__ import annotations

import torch
from _authors import authors
from _counted import Counted
from _job import Job
from _peers import Attack
from torch import Tensor, nn

from robustkd.targets import ClassifierTarget
from robustkd.targets.ensemble import EnsembleTarget, log_mean_probability


class _Passed(nn.Module):
    """A member whose passes are those of the ensemble: each member sees every image once."""

    def __init__(self, member: nn.Module, counted: Counted) -> None:
        super().__init__()
        self.member, self.passes = member, counted.passes

    def forward(self, x: Tensor) -> Tensor:
        return self.passes.follow(self.member(x))


def members(counted: Counted) -> list[nn.Module]:
    """The members of a counted network that averages their probabilities."""
    first, *others = counted.network.members
    return [_Passed(first, counted), *others]


def target(counted: Counted, shape: tuple[int, ...]) -> EnsembleTarget:
    """The same ensemble as ours wants it."""
    return EnsembleTarget([ClassifierTarget(member.eval(), num_classes=10, input_shape=shape) for member in members(counted)])


class _Outputs(nn.Module):
    """All that the authors' attack asks an ensemble for: the members' logits, and twice the log of their mean probability."""

    def __init__(self, counted: Counted) -> None:
        super().__init__()
        self.members = nn.ModuleList(members(counted))

    def forward(self, x: Tensor) -> list[Tensor]:
        logits = [member(x) for member in self.members]
        together = log_mean_probability(torch.stack(logits))
        return [*logits, together, together]


def authors_mora(job: Job) -> Attack:
    """MORA with its authors' temperature of 0.2, once with each share of the members that they try, on what the others leave."""

    def run(model: Counted, x: Tensor, y: Tensor) -> Tensor:
        attack = authors("mora_attack", "mora").MORAAttack(
            _Outputs(model).eval(), n_iter=job.budget["steps"], eps=job.eps, float_dis=0.2, device="cpu"
        )
        found, standing = x.clone(), torch.arange(len(x))
        with torch.no_grad():
            for attempt, share in enumerate(_SHARES[: job.budget["restarts"]]):
                attack.seed = len(_SHARES) * job.seed + attempt
                right, found[standing], _ = attack.perturb(x[standing], y[standing], scale=share)
                standing = standing[right]
                if not len(standing):
                    break
        return found

    return run


_SHARES = 0.5, 0.0, 0.25, 0.75, 1.0
