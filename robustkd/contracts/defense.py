"""The contract of defenses: what they are given, and what they return."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, overload, runtime_checkable

from robustkd.contracts.capability import ORDINARY, Capabilities
from robustkd.contracts.code import Code
from robustkd.contracts.data import Data, Inputs, Modality
from robustkd.contracts.errors import UsageError, suggestion
from robustkd.contracts.plugin import Plugin
from robustkd.contracts.target import BaseTarget, Kind, of_kind
from robustkd.contracts.threat import ThreatModel

if TYPE_CHECKING:
    import torch

MetricLog = Callable[[int, Mapping[str, float]], None]
"""``log(epoch, {"train_loss": .., "validation_accuracy": ..})``, once an epoch."""


@dataclass(frozen=True)
class FitContext(Generic[Data]):
    """Everything a defense may use. The test data are not in it, so nothing can be selected on them.

    Attributes:
        train, validation: the training data and the part carved from them for selection: ``Arrays``, or ``Prompts`` in a
            ``FitContext[Prompts]``. None where the data have no training part, which a defense that ``uses_data`` never meets.
        input_shape: (C, H, W) of one image.
        num_classes: K.
        threat: the campaign's threat model, the default of robust training.
        targets: the finished targets of the defenses that the parameters refer to, by name.
        seed: seeds everything.
        device: where to train.
        checkpoints: a folder of this training's own, kept until it is finished.
        log: called once an epoch with its metrics.
        bounds: the lowest and the highest value of the inputs in the user's unit, each a number or a nested list that broadcasts over
            a sample; None where that is [0, 1]. All data are in [0, 1] here: of x in the user's unit, (x - lowest) / widest range.
        label: of data with several labels that may hold together, the one that counts, or ``"any"``. The data have classes here: two,
            without the label and with it, or one for each set of labels. A network from elsewhere has an output for each label.
        classes: the names of the K classes; () where they are not known.
        outputs_known: whether the user said which output of a model each class is.
    """

    train: Data
    validation: Data
    input_shape: tuple[int, ...]
    num_classes: int
    threat: ThreatModel
    seed: int
    device: torch.device
    checkpoints: Path
    targets: Mapping[str, BaseTarget] = field(default_factory=dict)
    log: MetricLog = lambda epoch, metrics: None
    bounds: Sequence[Any] | None = None
    label: int | Literal["any"] | None = None
    classes: tuple[str, ...] = ()
    outputs_known: bool = False

    @overload
    def target(self, name: str) -> BaseTarget: ...

    @overload
    def target(self, name: str, kind: type[Kind]) -> Kind: ...

    def target(self, name: str, kind: type[BaseTarget] = BaseTarget) -> BaseTarget:
        """The finished target of the defense called ``name``.

        Raises:
            UsageError: the parameters do not refer to it, or it is not of the type ``kind``.
        """
        if name not in self.targets:
            raise UsageError(f"defense '{name}' was not handed over", fix=suggestion(name, self.targets))
        return of_kind(self.targets[name], name, kind)


@runtime_checkable
class UnderThreat(Protocol):
    """A parameter that is good for some threat models and not for others."""

    def refusal(self, threat: ThreatModel) -> str | None:
        """Why it cannot be used, None where it can."""


class Defense(Plugin, ABC):
    """A defense: parameters, and ``fit``.

    Attributes:
        modalities: what it defends.
        inputs: ``images`` of a defense that takes (C, H, W) in [0, 1] alone; ``any`` of one that takes inputs of any shape, and whose
            target has ``context.bounds`` in view.
        uses_threat: whether ``fit`` looks at ``context.threat``: then another threat model means another training.
        uses_data: whether ``fit`` looks at the training data.
        undefended: whether it only trains, without any defense: what a campaign's defenses are compared with.
        learns_soft_labels: whether it learns from the distributions of ``SoftArrays``; one that does not sees the labels alone.
        version: raise it when the trained target changes; results of another version are computed again.
    """

    modalities: ClassVar[tuple[Modality, ...]] = ("images",)
    inputs: ClassVar[Inputs] = "images"
    uses_threat: bool = False
    uses_data: bool = True
    undefended: ClassVar[bool] = False
    learns_soft_labels: ClassVar[bool] = False

    @property
    def reads_class_names(self) -> bool:
        """Whether ``fit`` looks at ``context.classes``: then other names of the same classes mean another training."""
        return False

    def refusal(self, threat: ThreatModel) -> str | None:
        """Why it cannot be trained under the campaign's threat model, None where it can.

        By default it cannot where a parameter cannot be used: one with a ``refusal`` of its own, such as the inner maximisation.
        """
        if not self.uses_threat:
            return None
        parts = [getattr(self.params, name) for name in type(self.params).model_fields]
        reasons = [reason for part in parts if isinstance(part, UnderThreat) and (reason := part.refusal(threat))]
        return reasons[0] if reasons else None

    @property
    def served_tokens(self) -> int | None:
        """The most tokens of an answer of the server that its target asks; None where it asks none."""
        return None

    @property
    def rebuilt(self) -> bool:
        """Whether the target is built again in each run, to see whether it is still the same.

        It is so by default for a plug-in of another package that loads a network instead of training one: what it reads is not
        in the campaign's identity. A loader whose ``files()`` are all that it reads may say False.
        """
        return not self.uses_data and type(self).__module__.partition(".")[0] != "robustkd"

    @property
    def may_change(self) -> str | None:
        """One sentence where what the target is made of may change without a trace in its identity, such as a branch on a hub."""
        return None

    def files(self) -> list[Path]:
        """Files outside the campaign whose content decides the outcome (weights, code); hashed into its identity."""
        return []

    def code(self) -> list[Code]:
        """The code by reference that the target's card names; a saved target may call no other (see ``load_target``)."""
        return []

    def target_capabilities(self, others: Mapping[str, Capabilities]) -> Capabilities:
        """What the targets that it makes can be asked for, before any is made: a plan leaves out attacks that need more.

        Args:
            others: the same of the defenses that its parameters refer to, by name.
        """
        return ORDINARY[self.modalities[0]]

    def connect(self, target: BaseTarget, folder: Path) -> None:
        """Called each time that a campaign has loaded the target: to say how it works where that changes none of its numbers.

        Args:
            target: what ``fit`` returned, loaded again.
            folder: where it may keep what it is not to ask for twice. It lies in the results folder, and all defenses and processes
                share it; it need not be there yet.
        """

    def parts(self, target: BaseTarget) -> Mapping[str, BaseTarget]:
        """The targets of other defenses that ``target``, loaded again, asks while it answers, by the names that the parameters give
        them: each is connected by its own defense.
        """
        return {}

    def asks(self) -> Mapping[str, int]:
        """How often, at most, one answer of its target asks each of those: what a plan counts for served models."""
        return {}

    @abstractmethod
    def fit(self, context: FitContext[Any]) -> BaseTarget:
        """Train (or load) and return the target, in evaluation mode."""
