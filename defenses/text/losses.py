"""The losses of continuous adversarial training, of log-probabilities.

All take ``logprobs`` (B, T), the log-probability of each token given what is before it, and ``completion`` (B, T) bool, which
tokens are the answer's: what a template, a prompt or padding holds has no part in them. All return one value a sample, so that
a cut-off decides about a sample and not about whom it shares a batch with.

Source: Xhonneux et al.: Efficient adversarial training in LLMs with continuous attacks (NeurIPS 2024), equations 4 and 6; the
cut-offs are those of its appendix on hyper-parameters; IPO is Azar et al.: A general theoretical paradigm to understand
learning from human preferences (AISTATS 2024), equation 17; the unlikelihood is that of Sheshadri et al.: Latent adversarial training
improves robustness to persistent harmful behaviors in LLMs (2024), section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

LEAK = 0.001
"""Slope of a loss below its cut-off: enough to tell which way is down, too little to go there."""


def completion_mean(logprobs: Tensor, completion: Tensor) -> Tensor:
    """(B,) mean log-probability of the answer's tokens."""
    return (logprobs * completion).sum(1) / completion.sum(1)


def cut_off(loss: Tensor, floor: float) -> Tensor:
    """The loss itself, and where it is below ``floor``, floor + 0.001 * loss: what is good enough is left alone."""
    return torch.where(loss < floor, floor + LEAK * loss, loss)


def toward(logprobs: Tensor, completion: Tensor, floor: float) -> Tensor:
    """(B,) cross entropy of the answer to give, cut off below ``floor``."""
    return cut_off(-completion_mean(logprobs, completion), floor)


def away(logprobs: Tensor, completion: Tensor, floor: float) -> Tensor:
    """(B,) minus the cross entropy of the answer to withhold, cut off below ``floor``."""
    return cut_off(completion_mean(logprobs, completion), floor)


def unlikely(logprobs: Tensor, completion: Tensor) -> Tensor:
    """(B,) mean of -log(1 - p) over the tokens of the answer to withhold: it needs no cut-off, for it is never below 0."""
    surest = -torch.finfo(logprobs.dtype).eps  # at p = 1 the loss would be infinite
    return completion_mean(-torch.log(-torch.expm1(logprobs.clamp(max=surest))), completion)


def ipo(safe: Tensor, harmful: Tensor, reference_safe: Tensor, reference_harmful: Tensor, beta: float) -> Tensor:
    """(B,) squared distance of the preference for the safe answer from 1 / (2 beta).

    Args:
        safe, harmful: (B,) mean log-probabilities of the two answers at the perturbed prompt.
        reference_safe, reference_harmful: (B,) those that the model had before the training, at the clean prompt.
        beta: the smaller, the more the safe answer is to be preferred.
    """
    preference = (safe - reference_safe) - (harmful - reference_harmful)
    return (preference - 1 / (2 * beta)) ** 2
