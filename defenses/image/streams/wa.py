"""WA: a network learns task after task, remembers a few images, distils what it was, and aligns the weights of new classes.

    task 1:   min  CE(f(x), y)
    task t:   min  (1 - l) CE(f(x), y)  +  l * KD,      l = classes before / classes so far
              KD = - sum_{c old} softmax(f_old(x) / T)_c log softmax(f(x) / T)_c
    then:     w_c <- w_c * mean_{c old} ||w_c|| / mean_{c new} ||w_c||      for the new classes' rows of the last layer

over the images of task t and the remembered ones (``stream``). With ``inner``, x is an adversarial example of the network.

Good against the pull of new classes, which are many while the remembered images are few. Controls: ``distil: false, align: false`` is
replay, ``memory: 0`` with these is fine-tuning.

Source: Zhao et al.: Maintaining discrimination and fairness in class incremental learning (CVPR 2020), arXiv:1911.07053, and notes about
PyCIL's code (models/wa.py), which was not read itself: the divergence as a soft cross entropy without T^2, T = 2, the memory in total, by
herding. The paper also keeps the last layer's weights positive, PyCIL and this do not. ``inner`` is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.defenses.image.streams.stream import StreamDefense, StreamParams, StreamRecipe, Task
from robustkd.defenses.training import Minibatch
from robustkd.lazy import F, torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import last_linear

if TYPE_CHECKING:
    from torch import Tensor, nn


class WAParams(StreamParams):
    """Parameters of ``wa``."""

    distil: bool = Field(True, description="whether the network before the task teaches the old classes")
    align: bool = Field(True, description="whether the new classes' weights are made as long as the old ones' after each task")
    distil_temperature: float = Field(2.0, gt=0, description="T")


def aligned(module: nn.Module, old: Sequence[int], new: Sequence[int]) -> float:
    """Make the new classes' rows of the last layer as long as the old ones', on average; returns the factor."""
    weight = last_linear(module).weight
    with torch.no_grad():
        lengths = torch.linalg.vector_norm(weight, dim=1)
        factor = lengths[list(old)].mean() / lengths[list(new)].mean()
        weight[list(new)] *= factor
    return float(factor)


class WARecipe(StreamRecipe):
    """Cross entropy on the classes so far, and the answers of the network before the task."""

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """(1 - l) CE + l KD."""
        x, task, tau = self.images(target, batch), self.task, self.params.distil_temperature
        logits = target(x)
        hard = F.cross_entropy(logits, batch.y)
        if task.before is None or not self.params.distil:
            return hard, {"loss_old": torch.zeros_like(hard)}
        with torch.no_grad():
            wanted = (task.before(x)[:, task.old].float() / tau).softmax(1)
        soft = -(wanted * (logits[:, task.old].float() / tau).log_softmax(1)).sum(1).mean()
        share = len(task.old) / (len(task.old) + len(task.new))
        return (1 - share) * hard + share * soft, {"loss_old": soft}


class WA(StreamDefense):
    """A network that learns its classes in tasks, and is kept fair to the old ones."""

    Params = WAParams
    source = "Zhao et al. 2020, arXiv:1911.07053"
    version = "2"  # 1 trained new classes from rows that weight decay had made 0

    def recipe(self, task: Task) -> StreamRecipe:
        """Labels and the old answers."""
        return WARecipe(self.params, task)

    def finish(self, task: Task) -> None:
        """Align the weights of the new classes."""
        if task.old and self.params.align:
            aligned(task.network.module, task.old, task.new)
