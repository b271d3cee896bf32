"""SinKD's term for language models: the answers' tokens of a step, compared as sets of points.

    SD = mean over sets of  1/B sum_ij P_ij || q_i - p_j ||_1,   P the Sinkhorn plan of the set's B tokens

Source: Cui et al.: Sinkhorn distance minimization for knowledge distillation (COLING 2024), equations 6 to 10; the
weight 0.8, eps and the rounds are the paper's. Theirs is a set for each minibatch of classified texts; that tokens
are cut into sets of at most ``size``, in the order in which they stand, is ours, for a plan of all tokens of a step
would be too large.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.contracts import Params
from robustkd.defenses.training.sinkhorn import sinkhorn_distance
from robustkd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class SinkhornParams(Params):
    """The Sinkhorn distance of the student's answers from the teacher's."""

    weight: float = Field(0.8, gt=0, description="of the distance")
    temperature: float = Field(2.0, gt=0, description="of both distributions")
    regularisation: float = Field(0.1, gt=0, description="eps: the smaller, the nearer to an exact transport plan")
    rounds: int = Field(20, ge=1, description="normalisations of rows and columns")
    size: int = Field(64, ge=2, description="tokens in a set, at most")

    def __call__(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The scalar weight * SD of (M, V) logits."""
        p, q = ((logits.float() / self.temperature).softmax(1) for logits in (teacher, student))
        pairs = zip(q.split(self.size), p.split(self.size), strict=True)
        return self.weight * torch.stack([sinkhorn_distance(*pair, self.regularisation, self.rounds) for pair in pairs]).mean()
