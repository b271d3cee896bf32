"""PCR: each image is drawn to the proxy of its class, and away from those of the classes that its minibatch holds, and no others.

    min  - log  exp( cos(f(x), w_y) / tau )  /  sum_{c in the minibatch} exp( cos(f(x), w_c) / tau )

f is what the last linear layer is given, and its rows w_c are the proxies. A class counts once, however often it is in the minibatch. So a
class that only old images have is not pushed away by images of new classes unless it is there. With rows of length 1 and no bias the
largest logit is the largest cosine: so the network answers while it is trained, and so it is written down after each task.

Good with few remembered images. Control: ``wa`` with ``distil: false, align: false`` (replay), whose loss is over all classes so far.

Source: Lin et al.: PCR: proxy-based contrastive replay for online class-incremental continual learning (CVPR 2023), arXiv:2304.04408, and
notes about the authors' code (FelixHuiweiLin/PCR), which was not read itself: tau = 0.09. The released code gathers a column for each
image, so that a class that is there twice counts twice; this does not. A reduced form: tasks of several epochs, with a herded memory in
the shuffled minibatches, for one pass over a stream with a reservoir (``epochs: 1, remember: reservoir``). ``hpcr`` has HPCR's further
terms. ``inner`` is ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.defenses.image.streams.stream import StreamDefense, StreamParams, StreamRecipe, Task
from robustkd.defenses.training import Minibatch
from robustkd.lazy import F, torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import last_linear, with_penultimate

if TYPE_CHECKING:
    from torch import Tensor, nn


class PCRParams(StreamParams):
    """Parameters of ``pcr``."""

    tau: float = Field(0.09, gt=0, description="temperature of the cosines")


def proxy_loss(features: Tensor, proxies: Tensor, labels: Tensor, tau: float) -> Tensor:
    """The loss of (B, D) features, (K, D) proxies and (B,) labels; 0 where all labels are one."""
    present, place = labels.unique(return_inverse=True)
    cosines = F.normalize(features, dim=1) @ F.normalize(proxies[present], dim=1).T
    return F.cross_entropy(cosines / tau, place)


class PCRRecipe(StreamRecipe):
    """Cosines with the proxies of the classes that are there."""

    supports_data_parallel = False  # which classes are there is said of a whole minibatch

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The cross entropy among the classes of the minibatch."""
        network = self.task.network
        _, features = with_penultimate(network, self.images(target, batch))
        return proxy_loss(features, last_linear(network.module).weight, batch.y, self.params.tau), {}


class PCR(StreamDefense):
    """A network whose classes have proxies that only those beside them push away."""

    Params = PCRParams
    source = "reduced from Lin et al. 2023, arXiv:2304.04408"
    version = "2"  # 1 trained new classes from rows that weight decay had made 0, and chose the epoch by logits that it does not deploy

    def recipe(self, task: Task) -> StreamRecipe:
        """The proxies' loss."""
        return PCRRecipe(self.params, task)

    def answering(self, network: nn.Module) -> nn.Module:
        """The network by its cosines: the lengths of the rows and the bias have no part in the loss."""
        from robustkd.defenses.training.modules import UnitRows  # late: it imports torch

        return UnitRows(network)

    def finish(self, task: Task) -> None:
        """Make the logits cosines, but for the length of the features."""
        layer = last_linear(task.network.module)
        with torch.no_grad():
            layer.weight.copy_(F.normalize(layer.weight, dim=1))
            if layer.bias is not None:
                layer.bias.zero_()
