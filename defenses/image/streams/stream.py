"""What every method shares that learns its classes in tasks: the tasks, the memory, the mask, and a stage for each task.

The classes of the data are divided in their order. A task is trained on its images and on the remembered ones, by the method's loss;
classes that are not there yet cannot be answered, and their rows of the last layer are the initial ones when their task begins: until then
weight decay alone would move them, to 0. After a task a few images are remembered (``memory``). The target holds the network after each
task: ``sub-network`` makes each a defense, the analysis ``forgetting`` attacks all on each task.

With ``infinite`` the rate falls in the first task alone and then stays: after each task a copy is annealed, which is kept and attacked, and
the network goes on as it was before. Both together take as many epochs as a task without. Its control is the same method with ``schedule``.

The epoch of each task is chosen on the validation images of the classes so far; much public code chooses it on test data.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from robustkd.contracts import AddedLater, Arrays, FitContext, Target, ThreatModel, UsageError
from robustkd.defenses.image.streams.memory import Reservoir, herded
from robustkd.defenses.training import (
    Adversary,
    InnerMaximisation,
    Minibatch,
    NetworkParams,
    OptionallyAdversarial,
    Recipe,
    fresh_network,
)
from robustkd.defenses.training.auxiliary import with_auxiliary
from robustkd.defenses.training.batches import Samples
from robustkd.defenses.training.seeding import derived_seed
from robustkd.defenses.training.stages import Stage, run_stages
from robustkd.lazy import torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.activations import with_penultimate
from robustkd.targets.stream import StreamTarget

if TYPE_CHECKING:
    from torch import Tensor, nn

_BATCH = 500


class StreamParams(NetworkParams):
    """Parameters of every method that learns in tasks; ``epochs`` are of each task."""

    tasks: int = Field(5, ge=2, description="into how many tasks the classes are divided, in their order")
    memory: int = Field(2000, ge=0, description="images that are remembered in total")
    remember: Annotated[Literal["herding", "reservoir"], AddedLater()] = Field(
        "herding", description="which: as many of each class, those nearest to its mean, or any of the stream at random"
    )
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
        remembered: images of the tasks before; None in the first, and where nothing is remembered.
        auxiliary: what else is trained, see ``StreamDefense.auxiliary``.
    """

    network: ClassifierTarget
    before: ClassifierTarget | None
    old: list[int]
    new: list[int]
    adversary: Adversary | None
    threat: ThreatModel | None
    remembered: Arrays | None = None
    auxiliary: Mapping[str, nn.Module] = field(default_factory=dict)


def step_rng(batch: Minibatch, purpose: str) -> np.random.Generator:
    """What a whole step draws for one purpose, such as which remembered images it takes: the same when it is made again."""
    first = int(batch.index[0])  # in an epoch no other minibatch begins with this image
    return np.random.default_rng(derived_seed(batch.seed, f"{purpose}/{batch.epoch}/{first}"))


class Beside:
    """Images that a loss takes a few of in each step, beside those of the minibatch.

    Args:
        data: the images.
        device: where the training runs.
    """

    def __init__(self, data: Arrays, device: torch.device) -> None:
        self._samples = Samples(data, device)

    def drawn(self, batch: Minibatch, count: int, purpose: str) -> Minibatch:
        """At most ``count`` different ones, with streams of random numbers unlike those of the minibatch."""
        rows = step_rng(batch, purpose).permutation(len(self._samples))[:count]
        found = torch.from_numpy(rows)
        x, y = self._samples.take(found)
        return replace(batch, x=x, y=y, index=-1 - found.to(batch.index.device), soft=None)


def together(first: Minibatch, second: Minibatch) -> Minibatch:
    """Both minibatches in one."""
    parts = zip((first.x, first.y, first.index), (second.x, second.y, second.index), strict=True)
    x, y, index = (torch.cat(pair) for pair in parts)
    return replace(first, x=x, y=y, index=index, soft=None)


class StreamRecipe(Recipe[ClassifierTarget]):
    """A loss on the images of a task and the remembered ones."""

    def __init__(self, params: Any, task: Task) -> None:
        self.params, self.task, self.threat = params, task, task.threat

    def images(self, target: ClassifierTarget, batch: Minibatch) -> Tensor:
        """(B, C, H, W) the images, or adversarial examples of the network in their place."""
        return batch.x if self.task.adversary is None else self.task.adversary(target, batch)


class StreamDefense(OptionallyAdversarial):
    """A network that learns its classes in tasks. A method gives ``recipe``, and ``finish`` where more is done after a task.

    Attributes:
        mixes_memory: whether remembered images are in the minibatches among those of the task; else the loss takes them by itself.
    """

    mixes_memory: ClassVar[bool] = True

    @abstractmethod
    def recipe(self, task: Task) -> StreamRecipe:
        """The loss of a task."""

    def finish(self, task: Task) -> None:
        """Change the network after a task, before it is kept and attacked."""

    def answering(self, network: nn.Module) -> nn.Module:
        """What answers while a task is trained, with the network's weights: it is measured after each epoch, and ``inner`` attacks it."""
        return network

    def auxiliary(self, context: FitContext[Arrays], network: ClassifierTarget) -> dict[str, nn.Module]:
        """Modules that are trained with the network in all tasks, and not deployed."""
        return {}

    def fit(self, context: FitContext[Arrays]) -> Target:
        """Train the tasks in order; killed in one of them, it goes on there.

        Raises:
            UsageError: there are fewer classes than tasks, or a task without validation images.
        """
        p = self.params
        tasks = divided(context.num_classes, p.tasks)
        network = fresh_network(context, p.model, p.model_params)
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
        parts = {name: part.to(context.device) for name, part in self.auxiliary(context, network).items()}
        memory, untrained = _Memory(self, context), _LastLayer(network.module)
        old: list[int] = []
        for number, new in enumerate(tasks):
            seen = [*old, *new]
            untrained.write(network.module, new)
            rows, kept = np.flatnonzero(np.isin(labels, new)).tolist(), memory.rows
            train = _chosen(context.train, [*rows, *kept] if self.mixes_memory else rows)
            remembered = _chosen(context.train, kept) if kept else None
            task = Task(network, after[-1] if after else None, old, new, adversary, threat, remembered, parts)
            data = {"train": train, "validation": of_classes(context.validation, seen)}
            yield self._stage(f"task-{number + 1}", task, data, p if p.infinite is None else _constant(p, first=number == 0))
            kept_network = network
            if p.infinite is not None:
                kept_network = _copied(network, frozen=False)
                own = replace(task, network=kept_network, auxiliary=copy.deepcopy(parts))
                yield self._stage(f"anneal-{number + 1}", own, data, _annealing(p))
                self.finish(own)
            self.finish(task)
            memory.take(network, new, seen)
            old = seen
            after.append(_copied(kept_network))

    def _stage(self, name: str, task: Task, data: Mapping[str, Any], settings: StreamParams) -> Stage:
        """The training of a task's network, among the classes so far."""
        trained = masked(task.network, [*task.old, *task.new], self.answering(task.network.module))
        return Stage(
            name,
            with_auxiliary(trained, **task.auxiliary) if task.auxiliary else trained,
            self.recipe(task),
            settings,
            data=data,
        )


def _anneal_epochs(p: StreamParams) -> int:
    """Of the epochs of a task, those in which a copy is annealed; 0 where there is one epoch alone."""
    assert p.infinite is not None
    return min(p.epochs - 1, max(1, round(p.infinite.anneal * p.epochs)))


def _constant(p: StreamParams, first: bool) -> StreamParams:
    """The settings under which the network of a task goes on."""
    assert p.infinite is not None
    return p.model_copy(update={"infinite": p.infinite.going_on(first), "epochs": p.epochs - _anneal_epochs(p)})


def _annealing(p: StreamParams) -> StreamParams:
    """Those under which the copy is annealed."""
    assert p.infinite is not None
    return p.model_copy(update={"infinite": p.infinite.annealing(), "epochs": max(1, _anneal_epochs(p))})


class _Memory:
    """Which training images are remembered."""

    def __init__(self, defense: StreamDefense, context: FitContext[Arrays]) -> None:
        self._params, self._context = defense.params, context
        self._labels = np.asarray(context.train.labels)
        self._herds: dict[int, list[int]] = {}
        self._rng = np.random.default_rng(derived_seed(context.seed, "stream"))
        self._reservoir = Reservoir(defense.params.memory, self._rng)

    @property
    def rows(self) -> list[int]:
        """Of the tasks so far."""
        return [*self._reservoir.rows, *(row for herd in self._herds.values() for row in herd)]

    def take(self, network: ClassifierTarget, new: Sequence[int], seen: Sequence[int]) -> None:
        """Remember some of the task that is over."""
        if self._params.remember == "reservoir":
            self._reservoir.add(self._rng.permutation(np.flatnonzero(np.isin(self._labels, new))).tolist())
            return
        quota = self._params.memory // len(seen)
        self._herds = {name: herd[:quota] for name, herd in self._herds.items()}
        for name in new:
            self._herds[name] = self._herded(network, np.flatnonzero(self._labels == name), quota)

    def _herded(self, network: ClassifierTarget, rows: np.ndarray, quota: int) -> list[int]:
        """The training images of a class that are remembered, the most telling first."""
        if not quota or not len(rows):
            return []
        images = _chosen(self._context.train, rows.tolist())
        return [int(rows[place]) for place in herded(features_of(network, images, self._context.device), quota)]


class _LastLayer:
    """The weights of a network's last linear layer as they are now, by class; of a network without one, nothing."""

    def __init__(self, module: nn.Module) -> None:
        self._kept = [weight.detach().clone() for weight in self._weights(module)]

    def write(self, module: nn.Module, classes: Sequence[int]) -> None:
        """Give these classes back what they had."""
        with torch.no_grad():
            for weight, kept in zip(self._weights(module), self._kept, strict=True):
                weight[list(classes)] = kept[list(classes)].to(weight)

    @staticmethod
    def _weights(module: nn.Module) -> list[Tensor]:
        layers = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
        return list(layers[-1].parameters()) if layers else []


def features_of(network: ClassifierTarget, images: Arrays, device: torch.device) -> Tensor:
    """(N, D) what the last linear layer is given of N images."""
    network.module.eval()
    with torch.no_grad():
        parts = torch.from_numpy(images.unit()).split(_BATCH)
        return torch.cat([with_penultimate(network, part.to(device))[1] for part in parts])


def masked(network: ClassifierTarget, seen: Sequence[int], answering: nn.Module | None = None) -> ClassifierTarget:
    """The network, or what is ``answering`` for it, which cannot answer other classes; all share their weights."""
    from robustkd.models.snapshots import Masked  # late: it imports torch

    module = Masked(answering or network.module, seen, network.num_classes)
    return ClassifierTarget(module, num_classes=network.num_classes, input_shape=network.input_shape, bounds=network.bounds)


def _copied(network: ClassifierTarget, frozen: bool = True) -> ClassifierTarget:
    """The network as it is now, frozen unless it is to be trained on."""
    module = copy.deepcopy(network.module)
    if frozen:
        module.requires_grad_(False).eval()
    return ClassifierTarget(
        module,
        num_classes=network.num_classes,
        input_shape=network.input_shape,
        origin=network.origin,
        bounds=network.bounds,
    )


def _chosen(data: Arrays, rows: Sequence[int]) -> Arrays:
    return data.select(np.asarray(sorted(rows), dtype=np.int64))


def of_classes(data: Arrays, classes: Sequence[int]) -> Arrays:
    """The images of these classes.

    Raises:
        UsageError: there are none among the validation images.
    """
    rows = np.flatnonzero(np.isin(np.asarray(data.labels), classes))
    if not len(rows):
        raise UsageError(f"there is no validation image of the classes {list(classes)}", fix="keep more validation data")
    return data.select(rows)
