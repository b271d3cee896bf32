"""The defense contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from robustkd.contracts.code import Code
from robustkd.contracts.data import Modality
from robustkd.contracts.errors import UsageError, suggestion
from robustkd.contracts.plugin import Plugin
from robustkd.contracts.threat import ThreatModel

if TYPE_CHECKING:
    import torch

    from robustkd.contracts.target import Target

MetricLog = Callable[[int, Mapping[str, float]], None]
"""``log(epoch, {"train_loss": .., "validation_accuracy": ..})``, once an epoch."""


@dataclass(frozen=True)
class FitContext:
    """Everything a defense may use. The test data are not in it, so nothing can be selected on them.

    Attributes:
        train, validation: the training data and the part carved from them for selection: ``Arrays`` or ``Prompts``.
        input_shape: (C, H, W) of one image.
        num_classes: K.
        threat: the campaign's threat model, the default of robust training.
        targets: the finished targets of the defenses that the parameters refer to, by name.
        seed: seeds everything.
        device: where to train.
        checkpoints: a folder of this training's own, kept until it is finished.
        log: called once an epoch with its metrics.
    """

    train: Any
    validation: Any
    input_shape: tuple[int, ...]
    num_classes: int
    threat: ThreatModel
    seed: int
    device: torch.device
    checkpoints: Path
    targets: Mapping[str, Target] = field(default_factory=dict)
    log: MetricLog = lambda epoch, metrics: None

    def target(self, name: str) -> Target:
        """The finished target of the defense called ``name``."""
        if name not in self.targets:
            raise UsageError(f"defense '{name}' was not handed over", fix=suggestion(name, self.targets))
        return self.targets[name]


class Defense(Plugin, ABC):
    """A defense: parameters, and ``fit``.

    Attributes:
        modalities: what it defends.
        uses_threat: whether ``fit`` looks at ``context.threat``: then another threat model means another training.
        uses_data: whether ``fit`` looks at the training data.
        version: raise it when the trained target changes; results of another version are computed again.
    """

    modalities: ClassVar[tuple[Modality, ...]] = ("images",)
    uses_threat: ClassVar[bool] = False
    uses_data: ClassVar[bool] = True
    version: ClassVar[str] = "1"

    @property
    def rebuilt(self) -> bool:
        """Whether the target is built again in each run, to see whether it is still the same.

        It is so by default for a plug-in of another package that loads a network instead of training one: what it reads is not
        in the campaign's identity. A loader whose ``files()`` are all that it reads may say False.
        """
        return not self.uses_data and type(self).__module__.partition(".")[0] != "robustkd"

    def files(self) -> list[Path]:
        """Files outside the campaign whose content decides the outcome (weights, code); hashed into its identity."""
        return []

    def code(self) -> list[Code]:
        """The code by reference that the target's card names; a saved target may call no other (see ``load_target``)."""
        return []

    @abstractmethod
    def fit(self, context: FitContext) -> Target:
        """Train (or load) and return the target, in evaluation mode."""
