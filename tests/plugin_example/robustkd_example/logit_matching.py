"""LogitMatching: a student that is drawn to its teacher's logits, and to the labels.

    min_S  alpha * mean_k (T(x)_k - S(x)_k)^2 + (1 - alpha) * CE(S(x), y)

Source: Ba and Caruana: Do deep nets really need to be deep? (NIPS 2014), equation 1, for the first term.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from robustkd.defenses.training import Distillation, DistillationParams, DistillationRecipe, Minibatch
from robustkd.targets import ClassifierTarget


class LogitMatchingParams(DistillationParams):
    """Parameters of ``logit-matching``; teacher, student and the training's own come with ``DistillationParams``."""

    alpha: float = Field(0.5, ge=0, le=1, description="weight of the teacher's logits; the labels get the rest")


class LogitMatchingRecipe(DistillationRecipe):
    """The loss; the loop around it (order, schedule, checkpoints, selection) is robustkd's."""

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and what to log: batch.x is (B, C, H, W) in [0, 1], batch.y (B,)."""
        alpha, logits = self.params.alpha, target(batch.x)
        match = F.mse_loss(logits, self.teacher.clean(batch))
        return alpha * match + (1 - alpha) * F.cross_entropy(logits, batch.y), {"loss_match": match}


class LogitMatching(Distillation):
    """A student of a frozen teacher's logits."""

    Params = LogitMatchingParams
    recipe = LogitMatchingRecipe
    source = "Ba and Caruana 2014, arXiv:1312.6184"
