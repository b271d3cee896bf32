"""What a network was after each of several tasks."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from robustkd.contracts import Card
from robustkd.contracts.json_value import JsonObject
from robustkd.targets.cards import target_from_card
from robustkd.targets.classifier import ClassifierTarget
from robustkd.targets.image import ImageTarget


class StreamCard(Card):
    """The card of a stream: those of the networks after each task, and each task's classes."""

    after: tuple[JsonObject, ...]
    tasks: tuple[tuple[int, ...], ...]


class StreamTarget(ImageTarget):
    """The network after the last task. It holds what it was after each one, as sub-networks ``after-1``, ``after-2``, ..

    Args:
        after: the network after each task, in order; each answers the classes of the tasks so far.
        tasks: the classes of each task.
    """

    kind = "stream"

    def __init__(self, after: Sequence[ImageTarget], tasks: Sequence[Sequence[int]]) -> None:
        from robustkd.models.snapshots import Masked, Snapshots  # late: it imports torch

        last = after[-1]
        seen = [[number for task in tasks[: place + 1] for number in task] for place in range(len(after))]
        masked = [Masked(one.module, classes, last.num_classes) for one, classes in zip(after, seen, strict=True)]
        super().__init__(Snapshots(masked), num_classes=last.num_classes, input_shape=last.input_shape, bounds=last.bounds)
        self.after, self.tasks = tuple(after), tuple(tuple(task) for task in tasks)

    def among(self, place: int) -> ClassifierTarget:
        """The network after the last task when it may answer only the classes that were there after task ``place``, from 0."""
        from robustkd.models.snapshots import Masked  # late: it imports torch

        classes = [number for task in self.tasks[: place + 1] for number in task]
        module = Masked(self.after[-1].module, classes, self.num_classes).eval()
        return ClassifierTarget(module, num_classes=self.num_classes, input_shape=self.input_shape, bounds=self.bounds)

    @override
    def card(self) -> JsonObject:
        return StreamCard(target=self.kind, after=tuple(one.card() for one in self.after), tasks=self.tasks).to_json()

    @classmethod
    @override
    def from_card(cls, card: JsonObject) -> StreamTarget:
        own = StreamCard.read(card)
        found = [target_from_card(item) for item in own.after]
        return cls([one for one in found if isinstance(one, ImageTarget)], own.tasks)
