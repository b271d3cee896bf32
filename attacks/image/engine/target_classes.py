"""Which wrong classes a targeted attack aims at, and in which order.

``logits`` ranks them by their logit at the clean image, as AutoAttack does. ``malt`` ranks them by the distance of their decision
boundary in the network linearised there,

    (z_y - z_t) / ||grad (z_y - z_t)||_dual

which differs most where classes are many: a class of a low logit may have a steep one.

Source of ``malt``: Melamed, Yehudai, Shamir: MALT powers up adversarial attacks (NeurIPS 2024, arXiv:2407.02240). That the size of the
gradient is measured in the dual of the threat's own norm, so that the ratio is a distance in it, is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from robustkd.attacks.image.engine.minimum_norm.linearise import DUAL
from robustkd.attacks.image.engine.oracle import Oracle, finite, gradient_of
from robustkd.contracts.threat import Norm
from robustkd.lazy import torch
from robustkd.scoring.distances import distance

if TYPE_CHECKING:
    from torch import Tensor

ClassOrder: TypeAlias = Literal["logits", "malt"]

CANDIDATES = 100
"""Classes that ``malt`` looks at, those of the highest logits: each costs one backward pass a sample, once. As in the paper."""


def wrong_classes(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, K - 1) the classes other than the label, the likeliest first."""
    ranked = logits.scatter(1, labels.unsqueeze(1), -torch.inf).sort(dim=1, descending=True, stable=True).indices
    return ranked[:, :-1]


def target_classes(
    oracle: Oracle, clean: Tensor, logits: Tensor, rows: Tensor, *, norm: Norm, order: ClassOrder, candidates: int = CANDIDATES
) -> Tensor:
    """(B, C) wrong classes of each sample, the one to aim at first comes first.

    With ``malt`` this takes, of each sample in ``rows``, one forward pass and a backward pass for each of ``candidates`` classes.

    Args:
        oracle: queries, counts and names the labels.
        clean: (B, *shape) clean images.
        logits: (B, K) the target's answers to them.
        rows: (A,) the samples to look at; the others keep the order by logits.
        norm: in which distances are measured.
        order: by which the classes are ranked.
        candidates: with ``malt``, how many classes are ranked, those of the highest logits; the others are left out.
    """
    ranked = wrong_classes(logits, oracle.labels)
    if order == "logits":
        return ranked
    ranked = ranked[:, :candidates].clone()
    if len(rows):
        nearest = _distances(oracle, clean[rows], rows, ranked[rows], norm).argsort(dim=1, stable=True)
        ranked[rows] = ranked[rows].gather(1, nearest)
    return ranked


def _distances(oracle: Oracle, x: Tensor, rows: Tensor, classes: Tensor, norm: Norm) -> Tensor:
    """(A, C) of ``x`` to its boundary with each of ``classes`` (A, C), to first order. One gradient at a time is in memory."""
    x = x.detach().requires_grad_()
    own = oracle.labels[rows].unsqueeze(1)
    with torch.enable_grad():
        logits = finite(oracle.outputs_at(x, rows), x)
        margins = (logits.gather(1, own) - logits.gather(1, classes)).unbind(1)
        totals = [margin.sum() for margin in margins]
    last = len(totals) - 1
    steepness = [distance(gradient_of(total, x, again=number < last), DUAL[norm]) for number, total in enumerate(totals)]
    oracle.passes.spend(rows, forwards=1, backwards=len(totals))
    size = torch.stack(steepness, 1)
    return torch.stack(margins, 1).detach().to(size.dtype) / size.clamp_min(torch.finfo(size.dtype).tiny)
