"""FLAIR: a network that learns task after task adversarially keeps how its old logits move under attack.

    x~  = the adversarial example of x
    min   iCaRL's loss at x~, with alpha on the old classes (``binary``)
          + beta * KL( softmax( z^old(x~) - z^old(x) ) || softmax( z(x~) - z(x) ) )         over the old classes

The difference of two logits says how steep the network is around x to first order, so the last term passes on how flat the old network was.

Good when adversarial training forgets what it learnt before. Controls: ``beta: 0`` is iCaRL's loss with adversarial training.

Source: Lee et al.: Enhancing robustness in incremental learning with adversarial training (AAAI 2025), arXiv:2312.03289; the authors'
code was read (HongsinLee/FLAIR, models/flair.py): alpha = beta = 1 on CIFAR-10, PGD-10, memory of 2,000 by herding, divergence averaged
over the batch. Their public code adds augmentations, and its accuracies are logged on test data. A task's epoch is chosen on validation
data here, which is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.defenses.image.streams.binary import binary_loss
from robustkd.defenses.image.streams.stream import StreamDefense, StreamParams, StreamRecipe, Task
from robustkd.defenses.training import InnerMaximisation, Minibatch
from robustkd.defenses.training.divergence import kl
from robustkd.lazy import torch
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor


class FLAIRParams(StreamParams):
    """Parameters of ``flair``."""

    inner: InnerMaximisation = Field(default_factory=InnerMaximisation, description="the adversarial examples to train on")
    alpha: float = Field(1.0, ge=0, description="of the old classes' cross entropy")
    beta: float = Field(1.0, ge=0, description="of the divergence of differences")


class FLAIRRecipe(StreamRecipe):
    """Binary cross entropies at adversarial examples, and the divergence of what the attack changed."""

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Both terms; the second is 0 in the first task."""
        p, task = self.params, self.task
        attacked = self.images(target, batch)
        logits = target(attacked)
        if task.before is None:
            loss = binary_loss(logits, batch.y, None, task.old, task.new)
            return loss, {"loss_flat": torch.zeros_like(loss)}
        with torch.no_grad():
            before = task.before(attacked)
            steep = (before - task.before(batch.x))[:, task.old]
        flat = kl(steep, (logits - target(batch.x))[:, task.old], reduction="batch")
        return binary_loss(logits, batch.y, before, task.old, task.new, p.alpha) + p.beta * flat, {"loss_flat": flat}


class FLAIR(StreamDefense):
    """A network that learns its classes in tasks, and passes on how flat it was."""

    Params = FLAIRParams
    source = "Lee et al. 2025, arXiv:2312.03289"
    version = "2"  # 1 trained new classes from rows that weight decay had made 0

    def recipe(self, task: Task) -> StreamRecipe:
        """iCaRL's loss and the flatness."""
        return FLAIRRecipe(self.params, task)
