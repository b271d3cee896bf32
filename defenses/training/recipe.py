"""What a defense adds to the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from robustkd.contracts import ThreatModel
from robustkd.contracts.json_value import JsonObject
from robustkd.defenses.training.auxiliary import AuxiliaryNetwork
from robustkd.defenses.training.batches import Minibatch
from robustkd.targets import ImageTarget

if TYPE_CHECKING:
    from torch import Tensor

Trained = TypeVar("Trained", bound=ImageTarget)
"""What a training trains: a single network, or an ensemble."""


class Recipe(ABC, Generic[Trained]):
    """A loss, and what it learns on the way. Everything else is the loop's.

    What changes from step to step must be named in ``state`` or given by ``tensors``, or a resumed training is another
    training. Randomness comes from ``batch.rng``.

    Attributes:
        threat: what the deployed epoch is selected against; None selects on clean accuracy.
        state: names of the attributes that change from step to step; their values are plain JSON.
        auxiliary: a network that is trained along with a loss of its own; its state is then the recipe's ``tensors``.
        replays: how many steps in a row are made of each minibatch.
        supports_data_parallel: whether several processes may each take a share of a minibatch.
    """

    threat: ThreatModel | None = None
    state: ClassVar[tuple[str, ...]] = ()
    auxiliary: AuxiliaryNetwork | None = None
    replays: int = 1
    supports_data_parallel: ClassVar[bool] = True

    @abstractmethod
    def loss(self, target: Trained, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, and scalars to log; ``target.module`` is in train mode."""

    def start_epoch(self, epoch: int, decay: float) -> None:
        """Before the steps of ``epoch`` (from 0), also when it is taken up in the middle.

        Args:
            epoch: counted from 0.
            decay: the factor that is on the learning rate now, for rates of the recipe's own that fall with it.
        """
        return None

    def after_step(self, metrics: Mapping[str, float]) -> None:
        """After the weights moved: the values that ``loss`` returned for this step."""
        return None

    def collapsed(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Whether the last of the measured epochs shows that the training has broken down for good.

        Such an epoch is not deployed, and none is trained after it.
        """
        return False

    def state_dict(self) -> JsonObject:
        """The recipe's own state as plain JSON."""
        return {name: getattr(self, name) for name in self.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state that ``state_dict`` gave."""
        for name in self.state:
            setattr(self, name, state[name])

    def tensors(self) -> dict[str, Tensor]:
        """The part of its state that is tensors, by name."""
        return {} if self.auxiliary is None else self.auxiliary.tensors()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up tensors that ``tensors`` gave; they are on the training's device."""
        if self.auxiliary is not None:
            self.auxiliary.load_tensors(tensors)
