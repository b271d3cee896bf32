"""What every method shares that learns its classes in tasks: the tasks, the memory, the mask, and a stage for each task.

The classes of the data are divided in their order. A task is trained on its images and on the remembered ones, by the method's loss;
classes that are not there yet cannot be answered. After it a few images of each new class are remembered (``memory``). The target holds
the network after each task: ``sub-network`` makes each a defense, the analysis ``forgetting`` attacks all on each task.

The epoch of each task is chosen on the validation images of the classes so far; much public code chooses it on test data.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from robustkd.contracts import Arrays, Defense, FitContext, Target, ThreatModel, UsageError
from robustkd.defenses.image.streams.memory import herded
from robustkd.defenses.training import Adversary, InnerMaximisation, Minibatch, NetworkParams, Recipe, fresh_network
from robustkd.defenses.training.stages import Stage, run_stages
from robustkd.lazy import torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import with_penultimate
from robustkd.targets.stream import StreamTarget

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 500


class StreamParams(NetworkParams):
    """Parameters of every method that learns in tasks; ``epochs`` are of each task."""

    tasks: int = Field(5, ge=2, description="into how many tasks the classes are divided, in their order")
    memory: int = Field(2000, ge=0, description="images that are remembered in total")
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


@dataclass(frozen=True)
class Task:
    """What a loss may know of the task that it trains.

    Attributes:
        network: the trained network, without the mask.
        before: the network before the task, frozen; None in the first.
        old, new: the classes of the tasks before, and of this one.
        adversary, threat: of adversarial training, or None.
    """

    network: ClassifierTarget
    before: ClassifierTarget | None
    old: list[int]
    new: list[int]
    adversary: Adversary | None
    threat: ThreatModel | None


class StreamRecipe(Recipe[ClassifierTarget]):
    """A loss on the images of a task and the remembered ones."""

    def __init__(self, params: Any, task: Task) -> None:
        self.params, self.task, self.threat = params, task, task.threat

    def images(self, target: ClassifierTarget, batch: Minibatch) -> Tensor:
        """(B, C, H, W) the images, or adversarial examples of the network in their place."""
        return batch.x if self.task.adversary is None else self.task.adversary(target, batch)


class StreamDefense(Defense):
    """A network that learns its classes in tasks. A method gives ``recipe``, and ``finish`` where more is done after a task."""

    @property
    def uses_threat(self) -> bool:  # type: ignore[override]
        """Whether it is trained on adversarial examples."""
        return self.params.inner is not None

    @abstractmethod
    def recipe(self, task: Task) -> StreamRecipe:
        """The loss of a task."""

    def finish(self, task: Task) -> None:
        """Change the network after a task, before it is kept and attacked."""

    def fit(self, context: FitContext[Arrays]) -> Target:
        """Train the tasks in order; killed in one of them, it goes on there.

        Raises:
            UsageError: there are fewer classes than tasks, or a task without validation images.
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
        self, context: FitContext[Arrays], network: ClassifierTarget, tasks: Sequence[list[int]], after: list[ClassifierTarget]
    ) -> Iterator[Stage]:
        p, labels = self.params, np.asarray(context.train.labels)
        adversary = None if p.inner is None else Adversary.under(p.inner, context.threat)
        threat = context.threat if adversary else None
        remembered: dict[int, list[int]] = {}
        old: list[int] = []
        for number, new in enumerate(tasks):
            seen = [*old, *new]
            rows = [*np.flatnonzero(np.isin(labels, new)).tolist(), *(row for kept in remembered.values() for row in kept)]
            data = {"train": _chosen(context.train, rows), "validation": _of_classes(context.validation, seen)}
            task = Task(network, after[-1] if after else None, old, new, adversary, threat)
            yield Stage(f"task-{number + 1}", _masked(network, seen), self.recipe(task), p, data=data)
            self.finish(task)
            quota = p.memory // len(seen)
            remembered = {name: kept[:quota] for name, kept in remembered.items()}
            for name in new:
                remembered[name] = self._herded(context, network, np.flatnonzero(labels == name), quota)
            old = seen
            after.append(_copied(network))

    def _herded(self, context: FitContext[Arrays], network: ClassifierTarget, rows: np.ndarray, quota: int) -> list[int]:
        """The training images of a class that are remembered, the most telling first."""
        if not quota or not len(rows):
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
