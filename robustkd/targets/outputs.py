"""How logits, (N, K), are made of what a user's network returns.

A network may return a tuple, a mapping or an object that holds the logits, one number for each sample instead of two logits,
probabilities, a logit for each of several labels that may hold together, the predicted class alone, or more classes than the data
have. What it does is found out once, on a few samples, and written into the target's card.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from robustkd.contracts import TargetError, UsageError
from robustkd.contracts.json_value import JsonValue
from robustkd.data.multi_label import Label, require_labels
from robustkd.lazy import nn, torch
from robustkd.scoring.probabilities import outputs_of

if TYPE_CHECKING:
    from torch import Tensor

    from robustkd.targets.modules import Key

FAR = 1000.0
"""How many times as large as a sample the inputs are for which a sigmoid still answers in [0, 1], and a logit does not."""


@dataclass(frozen=True)
class Classes:
    """The output of a network that belongs to each class of the data.

    Attributes:
        index: for each class of the data, the network's index of it.
        restrict: whether these outputs alone compete. If not, the network may also answer one of its other classes, which is wrong for
            every sample; these come after the data's classes, in the network's order.

    Raises:
        UsageError: an index is negative or named twice, or there are fewer than two.
    """

    index: tuple[int, ...]
    restrict: bool

    def __post_init__(self) -> None:
        if len(self.index) < 2 or min(self.index) < 0 or len(set(self.index)) < len(self.index):
            raise UsageError(
                f"classes: {list(self.index)}", fix="give the model's index of each class of the data, two or more, each once"
            )

    @classmethod
    def given(cls, index: Sequence[int] | None, restrict: bool | None) -> Classes | None:
        """The two settings, which belong together; None where neither is given.

        Raises:
            UsageError: one is given without the other, or the indices are no whole numbers.
        """
        if index is None:
            if restrict is not None:
                raise UsageError("restrict without classes", fix="give the model's index of each class of the data: classes")
            return None
        array = np.asarray(index)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise UsageError(
                f"classes is {index!r}", fix="give the model's index of each class of the data, such as [0, 217, 482]"
            )
        if not isinstance(restrict, bool):
            raise UsageError(
                "classes without restrict: may the model answer a class that the data do not have?",
                fix="restrict: true where the outputs of the data's classes alone compete, false where any other class is a wrong answer",
            )
        return cls(tuple(int(each) for each in array), restrict)

    def order(self, outputs: int) -> list[int]:
        """The network's outputs in the order of the target's.

        Raises:
            UsageError: an index is larger than the network has outputs.
        """
        if max(self.index) >= outputs:
            raise UsageError(
                f"classes names the output {max(self.index)}, the model has {outputs}", fix=f"use indices 0..{outputs - 1}"
            )
        others = [] if self.restrict else sorted(set(range(outputs)) - set(self.index))
        return [*self.index, *others]


@dataclass(frozen=True)
class OutputFormat:
    """The steps from what a network returns to logits, in the order in which they are taken.

    Attributes:
        taken: where the tensor is in a tuple, a mapping or an object; None of a network that returns a tensor.
        label: of a network with an output for each of several labels, the one that counts, as a class against its absence; or
            ``"any"``: every set of labels is a class.
        single: whether there is one number z for each sample. The logits are then 0 and z; of a sigmoid's p the probabilities are
            1 - p and p.
        probabilities: whether the logarithm is taken.
        classes: which outputs belong to the classes of the data.
        alone: whether it answers with the predicted class alone.
    """

    taken: Key | None = None
    label: Label | None = None
    single: bool = False
    probabilities: bool = False
    classes: Classes | None = None
    alone: bool = False

    def append_to(self, network: nn.Module, outputs: int) -> nn.Module:
        """The network with these steps behind it; itself where there are none.

        Args:
            outputs: how many the network has, which are the columns that ``classes`` chooses from.
        """
        from robustkd.targets import modules  # late: it imports torch

        if self.taken is not None:
            network = modules.Taken(network, self.taken)
        if self.alone:
            return modules.ClassesAlone(network, outputs)
        if isinstance(self.label, int):
            network = modules.OneLabel(network, self.label)
        if self.label == "any":
            return modules.SetsOfLabels(network, outputs, self.probabilities)
        if self.single:
            network = modules.TwoClasses(network, self.probabilities)
        if self.probabilities:
            network = modules.LogOfProbabilities(network)
        return network if self.classes is None else modules.Chosen(network, self.classes.order(outputs))

    def width(self, outputs: int) -> int:
        """K, of a network with so many outputs."""
        if self.label == "any":
            return int(2**outputs)
        return 2 if self.single else outputs if self.classes is None else len(self.classes.order(outputs))

    def to_origin(self, outputs: int) -> dict[str, JsonValue]:
        """What a card's origin has of it: nothing of a step that is not taken."""
        steps: dict[str, JsonValue] = {"taken": self.taken, "label": self.label, "single": self.single or None}
        if self.probabilities:
            steps["outputs"] = "probabilities"
        if self.classes is not None:
            steps |= {"classes": list(self.classes.index), "restrict": self.classes.restrict}
        if self.alone:
            steps["outputs"] = "classes"
        if self.classes is not None or self.label == "any":
            steps["of"] = outputs
        return {name: step for name, step in steps.items() if step is not None}

    @classmethod
    def from_origin(cls, origin: Mapping[str, Any]) -> OutputFormat:
        """The inverse of ``to_origin``."""
        return cls(
            origin.get("taken"),
            origin.get("label"),
            origin.get("single", False),
            origin.get("outputs") == "probabilities",
            Classes.given(origin.get("classes"), origin.get("restrict")),
            origin.get("outputs") == "classes",
        )

    def description(self, returned: str) -> str:
        """What is to be said of it, of a network whose output is ``returned``; empty where it returns logits."""
        said = []
        if self.taken is not None:
            what = f"element {self.taken}" if isinstance(self.taken, int) else f"'{self.taken}'"
            said.append(f"{returned}, of which {what} is taken")
        if self.alone:
            said.append("classes alone, so only attacks by decisions can be run on it")
        elif self.single:
            said.append(
                "one probability p for each sample; those of the two classes are 1 - p and p"
                if self.probabilities
                else "one logit z for each sample; those of the two classes are 0 and z"
            )
        elif self.probabilities:
            said.append("probabilities; their logarithm takes the place of its logits")
        return ", and ".join(said)


def infer_output_format(
    ask: Callable[[Tensor], object],
    samples: Tensor,
    *,
    noise: Callable[[], Tensor],
    expected: int | None = None,
    classes: Classes | None = None,
    label: Label | None = None,
) -> tuple[OutputFormat, int, str]:
    """How logits are made of what a network returns, how many outputs it has, and what it returns in words.

    Args:
        ask: the network, in evaluation mode and without gradients.
        samples: (N, *shape) a few.
        noise: makes (M, *shape) inputs of noise, which are looked at where ``samples`` leave a doubt.
        expected: how many outputs it should have, as far as that is known; it tells logits from features.
        classes, label: see ``OutputFormat``.

    Raises:
        TargetError: there is no tensor of shape (N, K) in what the network returns.
        UsageError: ``classes`` or ``label`` do not fit its outputs.
    """
    from robustkd.targets.modules import taken  # late: it imports torch

    returned = ask(samples)
    key = place(returned, len(samples), expected)
    output_format = OutputFormat(taken=key, label=label, classes=classes)

    def values(x: Tensor) -> Tensor:
        tensor: Tensor = taken(ask(x), key)
        return tensor.reshape(len(x), -1)

    output = taken(returned, key)
    if not isinstance(output, torch.Tensor) or output.ndim > 2 or output.shape[:1] != samples.shape[:1]:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise TargetError(
            f"the model returned {shape} for {len(samples)} sample{'s' if len(samples) > 1 else ''}",
            fix="a classifier returns (N, K) logits; one of pixels, boxes or sequences is none",
        )
    found = output.reshape(len(samples), -1)
    if not output.is_floating_point() and output.dtype != torch.bool and found.shape[1] == 1:
        if not expected or classes is not None or label is not None:
            raise UsageError(
                "the model answers with classes alone, which does not tell how many it has",
                fix="in Python wrap it, robustkd.targets.modules.ClassesAlone(model, 10); leave out classes and label",
            )
        return replace(output_format, alone=True), expected, kind(returned)
    outputs = found.shape[1]
    if label is not None:
        require_labels(label, outputs)
        soft = sigmoid(values, noise()) and not bool((found < 0).any() | (found > 1).any())
        return replace(output_format, single=label != "any", probabilities=soft), outputs, kind(returned)
    if outputs == 1:
        if classes is not None:
            raise UsageError("classes of a model with one output", fix="leave them out: its two classes are 0 and 1")
        return replace(output_format, single=True, probabilities=sigmoid(values, noise())), 1, kind(returned)
    soft = outputs_of(found) == "probabilities" and outputs_of(values(noise())) == "probabilities"
    return replace(output_format, probabilities=soft), outputs, kind(returned)


def sigmoid(values: Callable[[Tensor], Tensor], noise: Tensor) -> bool:
    """Whether each output lies in [0, 1], however far from ordinary the input is: a logit would leave it."""
    return all(bool(((found >= 0) & (found <= 1)).all()) for found in map(values, (noise, FAR * noise, -FAR * noise)))


def kind(returned: object) -> str:
    """What a network returned, in words."""
    if isinstance(returned, tuple | list) and type(returned) in (tuple, list):
        return f"a {type(returned).__name__} of {len(returned)}"
    return f"a {type(returned).__name__}"


def place(returned: object, samples: int, expected: int | None = None) -> Key | None:
    """Where the logits are in what a network returned: None in a tensor.

    ``logits``, else the one floating tensor of shape (N, K), else the one with the expected K, else the first one of all if it is (N, K).

    Raises:
        TargetError: there is none.
    """
    if isinstance(returned, torch.Tensor):
        return None
    held: dict[Key, object] = {}
    if isinstance(returned, Mapping):
        held |= returned
    elif isinstance(returned, tuple | list):
        held |= enumerate(returned)
    elif hasattr(returned, "__dict__"):
        held.update(vars(returned).items())
    named = held.get("logits", getattr(returned, "logits", None))
    if isinstance(named, torch.Tensor):
        return "logits"
    floating = {key: each for key, each in held.items() if isinstance(each, torch.Tensor) and each.is_floating_point()}
    rows = {key: each for key, each in floating.items() if each.ndim == 2 and len(each) == samples}
    fitting = [key for key, each in rows.items() if each.shape[1] == expected]
    for candidates in ([*rows], fitting, [*held][:1]):
        if len(candidates) == 1 and candidates[0] in rows:
            return candidates[0]
    raise TargetError(
        f"the model returned {kind(returned)}, in which no tensor is known for its logits",
        fix="return (N, K) logits, or name them 'logits' in what is returned",
    )
