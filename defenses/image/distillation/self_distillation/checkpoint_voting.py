"""Checkpoint voting: a network is pulled to what its own past checkpoints say together.

    min_w  CE(S(x), y)  +  weight * tau^2 * KL( 1/k sum_i p_i(x); tau || S(x); tau )

p_i are the networks of the last k times that ``every`` epochs were done; before the first of them there is no vote.

Good for a flatter minimum, it is said. Control: ``weight: 0``, plain training. No adversarial example is seen.

Source: SD-DARTS: Zhu et al.: Improving differentiable architecture search via self-distillation (2023), arXiv:2302.05629; its abstract was
read. This is a reduced form: a fixed network for the super-network of an architecture search, and its checkpoints of past epochs for those
of past steps. The temperature and the weight are ours.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from robustkd.contracts import FitContext
from robustkd.defenses.training import Minibatch, NetworkParams, OneNetwork, Prepared, Recipe, kl
from robustkd.defenses.training.checkpoint import group, grouped
from robustkd.lazy import F, torch
from robustkd.targets import ClassifierTarget
from robustkd.targets.ensemble import log_mean_probability

if TYPE_CHECKING:
    from torch import Tensor, nn


class CheckpointVotingParams(NetworkParams):
    checkpoints: int = Field(3, ge=1, description="k, how many past checkpoints vote")
    every: int = Field(1, ge=1, description="epochs between them")
    weight: float = Field(1.0, ge=0, description="of the divergence from the vote")
    temperature: float = Field(1.0, gt=0, description="tau, of the vote and of the network")


class CheckpointVotingRecipe(Recipe[ClassifierTarget]):
    """Cross entropy, and divergence from the vote.

    Args:
        student: the trained network, from which checkpoints are taken.
        params: the defense's.

    Attributes:
        taken: before which epoch the last checkpoint was taken.
        past: the checkpoints, the oldest first.
    """

    state = ("taken", "held")

    def __init__(self, student: ClassifierTarget, params: CheckpointVotingParams) -> None:
        self.student, self.params = student, params
        self.taken = 0
        self.past: list[nn.Module] = []

    @property
    def held(self) -> int:
        """How many checkpoints there are."""
        return len(self.past)

    @held.setter
    def held(self, count: int) -> None:
        self.past = [self._copy() for _ in range(count)]

    @override
    def start_epoch(self, epoch: int, decay: float) -> None:
        """Take a checkpoint where it is time; an epoch that is taken up in its middle has taken its own already."""
        if epoch > self.taken and epoch % self.params.every == 0:
            self.past = [*self.past, self._copy()][-self.params.checkpoints :]
            self.taken = epoch

    def loss(self, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
        """CE + weight tau^2 KL(vote || S)."""
        p, logits = self.params, target(batch.x)
        hard = F.cross_entropy(logits, batch.y)
        if not self.past:
            return hard, {"loss_vote": torch.zeros_like(hard)}
        with torch.no_grad():
            vote = log_mean_probability(torch.stack([network(batch.x).float() / p.temperature for network in self.past]))
        soft = kl(vote, logits, student_temperature=p.temperature, reduction="batch")
        return hard + p.weight * p.temperature**2 * soft, {"loss_vote": soft}

    @override
    def tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for number, network in enumerate(self.past):
            found |= grouped(f"past-{number}", network.state_dict())
        return found

    @override
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        for number, network in enumerate(self.past):
            network.load_state_dict(group(f"past-{number}", tensors))

    def _copy(self) -> nn.Module:
        return copy.deepcopy(self.student.module).requires_grad_(False).eval()


class CheckpointVoting(OneNetwork):
    """A network that its own past teaches."""

    Params = CheckpointVotingParams
    source = "reduced from Zhu et al. 2023, arXiv:2302.05629"

    @contextmanager
    def training(self, context: FitContext, student: ClassifierTarget) -> Iterator[Prepared]:
        """The loss, and the network from which checkpoints are taken."""
        yield CheckpointVotingRecipe(student, self.params), student
