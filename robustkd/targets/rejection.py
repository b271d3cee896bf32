"""A target that rejects inputs, as somebody sees it who knows the classifier alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from robustkd.contracts import Target, WrappedTarget

if TYPE_CHECKING:
    from torch import Tensor


class ClassifierAlone(WrappedTarget):
    """The classifier of a target that ``rejects``: its outputs without the last one."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.rejects = False
        self.num_classes = target.num_classes - 1

    @override
    def __call__(self, inputs: Tensor) -> Tensor:
        return self.target(inputs)[:, :-1]


def classifier_alone(target: Target) -> Target:
    """The target without its detector; itself where it rejects nothing."""
    return ClassifierAlone(target) if target.rejects else target
