"""Kullback-Leibler divergence and entropy of tempered softmax outputs. The only KL of the code base.

    KL(P||Q) = sum_c P_c log(P_c / Q_c),   P = softmax(z_T / tau_T),   Q = softmax(z_S / tau_S)

Half of the defects met in public distillation code are silent reductions, so here the reduction is always said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Reduction = Literal["none", "batch", "batch-and-class", "tenth"]
"""``none``: (B,) one value a sample; ``batch``: their mean, the definition in the papers; ``batch-and-class``: that mean
divided by the number of classes, which is what averaging over every entry of the (B, K) table gives; ``tenth``: it divided by 10 on
any data, as code written for CIFAR-10 does that multiplies by 10 on CIFAR-100 to keep its learning rate."""


def kl(
    teacher_logits: Tensor,
    student_logits: Tensor,
    *,
    teacher_temperature: float = 1.0,
    student_temperature: float = 1.0,
    reduction: Reduction,
) -> Tensor:
    """KL(softmax(z_T / tau_T) || softmax(z_S / tau_S)), differentiable in both arguments.

    Not multiplied by tau^2. Computed in float32 at least, from log-probabilities, so that a saturated teacher costs no NaN.

    Args:
        teacher_logits: (B, K).
        student_logits: (B, K).
        teacher_temperature: tau_T > 0.
        student_temperature: tau_S > 0.
        reduction: see ``Reduction``.

    Returns:
        (B,) for ``none``, else a scalar.
    """
    log_p = tempered_log_softmax(teacher_logits, teacher_temperature)
    log_q = tempered_log_softmax(student_logits, student_temperature)
    per_sample = relative_entropy(log_p, log_q)
    if reduction == "none":
        return per_sample
    return scaled(per_sample.mean(), teacher_logits.shape[1], reduction)


def relative_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """(B,) sum_c P_c log(P_c / Q_c) of (B, K) log-probabilities; what P rules out adds nothing, so that -inf costs no NaN."""
    p = log_p.exp()
    return (p * torch.where(p > 0, log_p - log_q, 0.0)).sum(1)


def scaled(mean: Tensor, classes: int, reduction: Reduction) -> Tensor:
    """The mean over a batch as ``reduction`` wants it."""
    return mean if reduction == "batch" else mean / (10 if reduction == "tenth" else classes)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """(B,) entropy of softmax(z / tau) in nats, from (B, K) logits."""
    log_p = tempered_log_softmax(logits, temperature)
    return -(log_p.exp() * log_p).sum(1)


def tempered_log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """(B, K) log softmax(z / tau), in float32 when the logits are of lower precision."""
    wide = logits.float() if logits.element_size() < 4 else logits
    return (wide / temperature).log_softmax(1)
