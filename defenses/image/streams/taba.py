"""TABA: adversarial examples that a network gets wrong, one of an old class and one of a new, are mixed half and half.

    B   = the adversarial examples of this epoch that were classified wrongly
    x^  = lambda x~_old + (1 - lambda) x~_new,      both drawn of B,      lambda ~ U(0.45, 0.55)
    min   L(x~, y; x)  +  gamma ( lambda L(x^, y_old; x^) + (1 - lambda) L(x^, y_new; x^) )

L(z, y; x) is iCaRL's loss (``binary``) with the old network looking at x. Old and new classes share a border that neither's images are
near, and x^ lies there.

Control: ``gamma: 0``, iCaRL's loss with adversarial training, in which the old network sees clean images.

Source: Bai et al.: Towards adversarially robust continual learning (ICASSP 2023), arXiv:2303.17764, as the authors of FLAIR built it anew
(HongsinLee/FLAIR, models/taba.py, read); the paper itself was not. There lambda is a constant of the command line beside a comment that
draws it as here. Weight and number of mixed images are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from robustkd.defenses.image.streams.binary import binary_loss
from robustkd.defenses.image.streams.stream import StreamDefense, StreamParams, StreamRecipe, Task, step_rng
from robustkd.defenses.training import InnerMaximisation, Minibatch
from robustkd.lazy import torch
from robustkd.targets import ClassifierTarget

if TYPE_CHECKING:
    from torch import Tensor

_SPREAD = 0.05
"""lambda is a half, and at most this more or less."""


class TABAParams(StreamParams):
    """Parameters of ``taba``."""

    inner: InnerMaximisation = Field(default_factory=InnerMaximisation, description="the adversarial examples to train on")
    gamma: float = Field(1.0, ge=0, description="of the loss on mixed images")
    mixed: int = Field(32, ge=1, description="mixed images in a step, at most")


class TABARecipe(StreamRecipe):
    """iCaRL's loss on adversarial examples, and on mixtures of those that are wrong."""

    state: ClassVar[tuple[str, ...]] = ("epoch",)
    supports_data_parallel = False  # what was wrong is kept of whole minibatches

    def __init__(self, params: TABAParams, task: Task) -> None:
        super().__init__(params, task)
        self.epoch = -1
        self._wrong: dict[str, Tensor] = {}

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss on the examples, and gamma times that on mixtures."""
        task, attacked = self.task, self.images(target, batch)
        logits = target(attacked)
        if task.before is None:
            loss = binary_loss(logits, batch.y, None, task.old, task.new)
            return loss, {"loss_mixed": torch.zeros_like(loss)}
        with torch.no_grad():
            before = task.before(batch.x)
        loss = binary_loss(logits, batch.y, before, task.old, task.new)
        self._keep(attacked, batch, logits.argmax(1) != batch.y)
        border = self._border(target, batch)
        if border is None:
            return loss, {"loss_mixed": torch.zeros_like(loss)}
        return loss + self.params.gamma * border, {"loss_mixed": border}

    def _keep(self, attacked: Tensor, batch: Minibatch, wrong: Tensor) -> None:
        """Add what is wrong to what was wrong in this epoch."""
        found = {"x": attacked[wrong].detach(), "y": batch.y[wrong]}
        kept = self._wrong if batch.epoch == self.epoch else {}
        self.epoch = batch.epoch
        self._wrong = {name: torch.cat([kept[name], new]) if kept else new for name, new in found.items()}

    def _border(self, target: ClassifierTarget, batch: Minibatch) -> Tensor | None:
        """The loss on mixtures; None while nothing of the old or nothing of the new classes is wrong."""
        task, x, y = self.task, self._wrong["x"], self._wrong["y"]
        is_old = torch.isin(y, torch.tensor(task.old, device=y.device))
        rng = step_rng(batch, "taba")
        old, new = (rng.permutation(torch.nonzero(side).flatten().cpu().numpy()) for side in (is_old, ~is_old))
        count = min(len(old), len(new), self.params.mixed)
        if not count:
            return None
        mix = 0.5 + _SPREAD * float(rng.uniform(-1, 1))
        first, second = (torch.from_numpy(np.ascontiguousarray(rows[:count])).to(x.device) for rows in (old, new))
        images = mix * x[first] + (1 - mix) * x[second]
        with torch.no_grad():
            assert task.before is not None
            before = task.before(images)
        logits = target(images)
        of_old, of_new = (binary_loss(logits, y[rows], before, task.old, task.new) for rows in (first, second))
        return mix * of_old + (1 - mix) * of_new

    def tensors(self) -> dict[str, Tensor]:
        """What was wrong in this epoch."""
        return dict(self._wrong)

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take it up again."""
        self._wrong = dict(tensors)


class TABA(StreamDefense):
    """A network that learns its classes in tasks, and the border between old and new ones."""

    Params = TABAParams
    source = "Bai et al. 2023, arXiv:2303.17764"
    version = "2"  # 1 trained new classes from rows that weight decay had made 0

    def recipe(self, task: Task) -> StreamRecipe:
        """iCaRL's loss and that on mixtures."""
        return TABARecipe(self.params, task)
