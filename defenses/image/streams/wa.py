"""WA: a network learns task after task, remembers a few images, distils what it was, and aligns the weights of new classes.

    task 1:   min  CE(f(x), y)
    task t:   min  (1 - l) CE(f(x), y)  +  l * KD,      l = classes before / classes so far
              KD = - sum_{c old} softmax(f_old(x) / T)_c log softmax(f(x) / T)_c
    then:     w_c <- w_c * mean_{c old} ||w_c|| / mean_{c new} ||w_c||      for the new classes' rows of the last layer

over the images of task t and the remembered ones. The classes of the data are divided in their order into ``tasks``. Classes that are not
there yet cannot be answered. With ``inner``, x is an adversarial example of the network.

The target holds the network after each task (``sub-network`` makes each a defense; the analysis ``forgetting`` attacks all on each task).

Good against the pull of new classes, which are many while the remembered images are few. Controls: ``distil: false, align: false`` is
replay, ``memory: 0`` with these is fine-tuning.

Source: Zhao et al.: Maintaining discrimination and fairness in class incremental learning (CVPR 2020), arXiv:1911.07053, and PyCIL's code
(models/wa.py), as described in another reading of it: the divergence as a soft cross entropy without T^2, T = 2, the memory in total. The
paper also keeps the last layer's weights positive, PyCIL and this do not. Both choose nothing by validation data, or by test data; here the
epoch of each task is chosen on the validation images of the classes so far. ``inner`` is ours.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from robustkd.contracts import Arrays, Defense, FitContext, Target, ThreatModel, UsageError
from robustkd.defenses.image.streams.memory import herded
from robustkd.defenses.training import Adversary, InnerMaximisation, Minibatch, NetworkParams, Recipe, fresh_network
from robustkd.defenses.training.stages import Stage, run_stages
from robustkd.lazy import F, torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import last_linear, with_penultimate
from robustkd.targets.stream import StreamTarget

if TYPE_CHECKING:
    from torch import Tensor, nn

_BATCH = 500


class WAParams(NetworkParams):
    """Parameters of ``wa``; ``epochs`` are of each task."""

    tasks: int = Field(5, ge=2, description="into how many tasks the classes are divided, in their order")
    memory: int = Field(2000, ge=0, description="images that are remembered in total")
    distil: bool = Field(True, description="whether the network before the task teaches the old classes")
    align: bool = Field(True, description="whether the new classes' weights are made as long as the old ones' after each task")
    distil_temperature: float = Field(2.0, gt=0, description="T")
    inner: InnerMaximisation | None = Field(
        None, description="adversarial examples to train on in place of the images; {} makes them by 10 steps"
    )


def divided(num_classes: int, tasks: int) -> list[list[int]]:
    """The classes of each task: in order, as evenly as they go.

    Raises:
        UsageError: there are fewer classes than tasks.
    """
    if tasks > num_classes:
        raise UsageError(f"{num_classes} classes cannot be divided into {tasks} tasks", fix=f"give at most {num_classes} tasks")
    return [part.tolist() for part in np.array_split(np.arange(num_classes), tasks)]


def aligned(module: nn.Module, old: Sequence[int], new: Sequence[int]) -> float:
    """Make the new classes' rows of the last layer as long as the old ones', on average; returns the factor."""
    weight = last_linear(module).weight
    with torch.no_grad():
        lengths = torch.linalg.vector_norm(weight, dim=1)
        factor = lengths[list(old)].mean() / lengths[list(new)].mean()
        weight[list(new)] *= factor
    return float(factor)


class WARecipe(Recipe[ClassifierTarget]):
    """Cross entropy on the classes so far, and the answers of the network before the task.

    Args:
        params: the defense's.
        before: the network before the task, frozen, which answers the old classes; None in the first task.
        old: those classes.
        share: l.
        adversary, threat: of adversarial training, or None.
    """

    def __init__(
        self,
        params: WAParams,
        before: ClassifierTarget | None,
        old: Sequence[int],
        share: float,
        adversary: Adversary | None = None,
        threat: ThreatModel | None = None,
    ) -> None:
        self.params, self.before, self.old, self.share = params, before, list(old), share
        self.adversary, self.threat = adversary, threat

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """(1 - l) CE + l KD."""
        x = batch.x if self.adversary is None else self.adversary(target, batch)
        logits = target(x)
        hard = F.cross_entropy(logits, batch.y)
        if self.before is None:
            return hard, {"loss_old": torch.zeros_like(hard)}
        with torch.no_grad():
            wanted = (self.before(x)[:, self.old].float() / self.params.distil_temperature).softmax(1)
        said = (logits[:, self.old].float() / self.params.distil_temperature).log_softmax(1)
        soft = -(wanted * said).sum(1).mean()
        return (1 - self.share) * hard + self.share * soft, {"loss_old": soft}


class WA(Defense):
    """A network that learns its classes in tasks."""

    Params = WAParams
    source = "Zhao et al. 2020, arXiv:1911.07053"

    @property
    def uses_threat(self) -> bool:  # type: ignore[override]
        """Whether it is trained on adversarial examples."""
        return self.params.inner is not None

    def fit(self, context: FitContext[Arrays]) -> Target:
        """Train the tasks in order; killed in one of them, it goes on there.

        Raises:
            UsageError: there are fewer classes than tasks, or a task without training or validation images.
        """
        p = self.params
        tasks = divided(context.num_classes, p.tasks)
        network = fresh_network(context, p.model, p.model_params).to(context.device)
        after: list[ClassifierTarget] = []
        run_stages(context, self._stages(context, network, tasks, after))
        target = StreamTarget(after, tasks)
        target.module.eval()
        return target

    def _stages(
        self,
        context: FitContext[Arrays],
        network: ClassifierTarget,
        tasks: Sequence[Sequence[int]],
        after: list[ClassifierTarget],
    ) -> Iterator[Stage]:
        p, labels = self.params, np.asarray(context.train.labels)
        adversary = None if p.inner is None else Adversary.under(p.inner, context.threat)
        remembered: dict[int, list[int]] = {}
        old: list[int] = []
        for number, new in enumerate(tasks):
            seen = [*old, *new]
            rows = [*np.flatnonzero(np.isin(labels, new)).tolist(), *(row for kept in remembered.values() for row in kept)]
            data = {"train": _chosen(context.train, rows), "validation": _of_classes(context.validation, seen)}
            before = after[-1] if old and p.distil else None
            recipe = WARecipe(p, before, old, len(old) / len(seen), adversary, context.threat if adversary else None)
            yield Stage(f"task-{number + 1}", _masked(network, seen), recipe, p, data=data)
            if old and p.align:
                aligned(network.module, old, new)
            quota = p.memory // len(seen)
            remembered = {name: kept[:quota] for name, kept in remembered.items()}
            for name in new:
                remembered[name] = self._herded(context, network, np.flatnonzero(labels == name), quota)
            old = seen
            after.append(_copied(network))

    def _herded(self, context: FitContext[Arrays], network: ClassifierTarget, rows: np.ndarray, quota: int) -> list[int]:
        """The training images of a class that are remembered, the most telling first."""
        if not quota:
            return []
        images = torch.from_numpy(_chosen(context.train, rows.tolist()).unit())
        with torch.no_grad():
            found = [with_penultimate(network, part.to(context.device))[1] for part in images.split(_BATCH)]
        return [int(rows[place]) for place in herded(torch.cat(found), quota)]


def _masked(network: ClassifierTarget, seen: Sequence[int]) -> ClassifierTarget:
    """The network, which cannot answer other classes; both share their weights."""
    from robustkd.models.snapshots import Masked  # late: it imports torch

    module = Masked(network.module, seen, network.num_classes)
    return ClassifierTarget(module, num_classes=network.num_classes, input_shape=network.input_shape, bounds=network.bounds)


def _copied(network: ClassifierTarget) -> ClassifierTarget:
    """The network as it is now, frozen."""
    module = copy.deepcopy(network.module).requires_grad_(False).eval()
    return ClassifierTarget(
        module,
        num_classes=network.num_classes,
        input_shape=network.input_shape,
        origin=network.origin,
        bounds=network.bounds,
    )


def _chosen(data: Arrays, rows: Sequence[int]) -> Arrays:
    return data.select(np.asarray(sorted(rows), dtype=np.int64))


def _of_classes(data: Arrays, classes: Sequence[int]) -> Arrays:
    rows = np.flatnonzero(np.isin(np.asarray(data.labels), classes))
    if not len(rows):
        raise UsageError(f"there is no validation image of the classes {list(classes)}", fix="keep more validation data")
    return data.select(rows)
