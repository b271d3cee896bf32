"""What attacks share that ask a model with other weights in the place of its own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from typing_extensions import override

from robustkd.contracts import Attempts, PromptAttack, PromptBatch, Request, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.targets.causal_lm import CausalLMTarget

if TYPE_CHECKING:
    from torch import Tensor


class WeightAttack(PromptAttack[CausalLMTarget]):
    """Finds weights on training requests, and asks with each of them."""

    needs = PromptAttack.needs | {"tokens", "log-probabilities", "weights"}
    space = "weights"
    learns = True

    @abstractmethod
    def weights(self, target: CausalLMTarget) -> Iterable[Mapping[str, Tensor]]:
        """The weights of each attempt, by name.

        Raises:
            UsageError: it was not fitted.
        """

    @override
    def search(
        self, target: CausalLMTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """One attempt with each of the weights, no more than allowed; no pass of its own.

        Raises:
            UsageError: it was not fitted.
        """
        found, prompts = self.weights(target), batch.requests["prompt"]
        for weights in found:
            rows = attempts.open
            attempts(rows, [Request(prompts[row], weights=weights) for row in rows.tolist()])
