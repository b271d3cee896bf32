"""Divergences of a student's next token from its teacher's: p of the teacher, q of the student, over the vocabulary.

    forward        KL(p || q)
    reverse        KL(q || p)
    js             a KL(p || m) + (1 - a) KL(q || m),     m = a p + (1 - a) q
    tvd            1/2 sum_v |p_v - q_v|
    skew-forward   KL(p || a p + (1 - a) q)
    skew-reverse   KL(q || a q + (1 - a) p)
    adaptive       (g_h KL(p || q) + g_t KL(q || p)) / (g_h + g_t),   g = sum_v |p_v - q_v| over the head or the tail of p

All are 0 where q = p, and never below. They are summed over the vocabulary and computed in float32 at least, whatever
the logits come in; a token that both rule out (-inf) has no part in them, one that only the student rules out makes
the forward divergence infinite, as it is. A training takes their mean over the tokens of all its answers, so that a
long answer weighs more than a short one.

Source: forward and reverse: Hinton et al. 2015, arXiv:1503.02531, and Gu et al.: MiniLLM (ICLR 2024), whose policy
gradient is not taken here; js: Agarwal et al.: On-policy distillation of language models (ICLR 2024), equation 2;
tvd: Wen et al.: f-divergence minimization for sequence-level knowledge distillation (ACL 2023), token by token; skew:
Ko et al.: DistiLLM (ICML 2024), section 3.1, with their a of 0.1; adaptive: Wu et al.: Rethinking Kullback-Leibler
divergence in knowledge distillation for large language models (2024), with their head, the likeliest tokens up to a
probability of 0.5. Read as others describe them, the papers themselves not being at hand. The gaps g are constants
here: that no gradient goes through them is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from robustkd.contracts import Params
from robustkd.defenses.training.divergence import kl, relative_entropy, tempered_log_softmax
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_LEAST = 1e-6
"""Of both weights of the adaptive divergence: 0 times an infinite one would be NaN."""
DivergenceName = Literal["forward", "reverse", "js", "tvd", "skew-forward", "skew-reverse", "adaptive"]


class DivergenceParams(Params):
    """Which divergence."""

    kind: DivergenceName = Field("forward", description="of the student's next token from the teacher's")
    temperature: float = Field(1.0, gt=0, description="of both; the divergence is not multiplied by its square")
    mixture: float | None = Field(
        None, gt=0, lt=1, description="a: the teacher's share in js (0.5), the share of the own distribution in skew (0.1)"
    )
    head: float = Field(0.5, gt=0, lt=1, description="of adaptive: the teacher's likeliest tokens up to this probability")

    def __call__(self, teacher: Tensor, student: Tensor) -> Tensor:
        """(M,) divergences of (M, V) logits, differentiable in both."""
        teacher, student = (logits.float() if logits.element_size() < 4 else logits for logits in (teacher, student))
        teacher, student = teacher / self.temperature, student / self.temperature
        match self.kind:
            case "forward":
                return kl(teacher, student, reduction="none")
            case "reverse":
                return kl(student, teacher, reduction="none")
            case "js":
                return jensen_shannon(teacher, student, self.mixture or 0.5)
            case "tvd":
                return 0.5 * (teacher.softmax(1) - student.softmax(1)).abs().sum(1)
            case "skew-forward":
                return skew(teacher, student, self.mixture or 0.1)
            case "skew-reverse":
                return skew(student, teacher, self.mixture or 0.1)
            case "adaptive":
                return adaptive(teacher, student, self.head)


def skew(of: Tensor, to: Tensor, share: float) -> Tensor:
    """(M,) KL(p || a p + (1 - a) q) of (M, V) logits of p and of q."""
    p = tempered_log_softmax(of, 1.0)
    return relative_entropy(p, _mixture(p, tempered_log_softmax(to, 1.0), share))


def jensen_shannon(teacher: Tensor, student: Tensor, share: float) -> Tensor:
    """(M,) a KL(p || m) + (1 - a) KL(q || m), m = a p + (1 - a) q, of (M, V) logits."""
    p, q = tempered_log_softmax(teacher, 1.0), tempered_log_softmax(student, 1.0)
    between = _mixture(p, q, share)
    return share * relative_entropy(p, between) + (1 - share) * relative_entropy(q, between)


def adaptive(teacher: Tensor, student: Tensor, head: float) -> Tensor:
    """(M,) forward and reverse KL of (M, V) logits, weighed by where the two distributions are apart."""
    with torch.no_grad():
        p, q = teacher.softmax(1), student.softmax(1)
        ranked, order = p.sort(dim=1, descending=True, stable=True)
        in_head = torch.zeros_like(p, dtype=torch.bool).scatter(1, order, ranked.cumsum(1) - ranked < head)
        gap = (p - q).abs()
        at_head = (gap * in_head).sum(1)
        total = gap.sum(1)
        weight = torch.where(total > 0, at_head / total.clamp_min(torch.finfo(total.dtype).tiny), 0.5)
        weight = weight.clamp(_LEAST, 1 - _LEAST)
    return weight * kl(teacher, student, reduction="none") + (1 - weight) * kl(student, teacher, reduction="none")


def _mixture(p: Tensor, q: Tensor, share: float) -> Tensor:
    """The log-probabilities of share * p + (1 - share) * q, of log-probabilities; not below the smallest number that there is."""
    mixed = share * p.exp() + (1 - share) * q.exp()
    return mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log()
