"""Soft prompt: some vectors appended to the embedded prompt, trained without a budget until the model begins its answer.

    max_{v_1..v_k} log p(beginning of the answer | embedded prompt, v_1..v_k)

The strongest that an attacker with the weights can append, and stronger than any text of as many tokens: no defense of the
prompt alone has been seen to hold against it. It tells what a model still knows, beside ``prefill``. Vectors that make the beginning
likeliest may make the rest wrong, so the target is also asked on the way.

Source: Schwinn et al.: Soft prompt threats (NeurIPS 2024), section 3; Lester et al.: The power of scale for parameter-efficient
prompt tuning (EMNLP 2021), whose initialisation by tokens of the vocabulary it takes; asked on the way as in the authors' code,
github.com/SchwinnL/LLM_Embedding_Attack (generate_interval).
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.text.embedding_space.embedding import AscentAttack
from robustkd.attacks.text.engine.continuous import Direction, EmbeddingPGD
from robustkd.contracts import EmbeddingRadius, Params, ThreatModel
from robustkd.contracts.random import SampleRng


class SoftPromptParams(Params):
    """The number of trained vectors, and the steps and restarts of their training."""

    slots: int = Field(8, ge=1, description="vectors appended to the prompt")
    steps: int = Field(100, ge=1, description="steps of each training")
    step_size: float = Field(0.1, gt=0, description="length of every vector's step, relative to the mean embedding norm")
    direction: Direction = Field("sign", description="step along the sign of the gradient, or along the gradient")
    restarts: int = Field(3, ge=1, description="trainings from other tokens of the vocabulary")
    asks: int = Field(5, ge=1, description="attempts during each training, as far as the attempts are enough for all trainings")


class SoftPrompt(AscentAttack):
    """Trains vectors behind the prompt, without a bound on how far they move."""

    Params = SoftPromptParams
    source = "Schwinn et al. 2024, arXiv:2402.09063"
    version = "3"  # 1 took the table's norms for a unit, which Gemma scales; 2 asked at the end of each training alone

    @property
    def _reach(self) -> float:
        """As far as its steps can take a vector: it has no other budget."""
        return float(self.params.steps * self.params.step_size)

    def threat_for(self, threat: ThreatModel) -> ThreatModel:
        """Vectors anywhere that its steps can lead."""
        return ThreatModel(budget=EmbeddingRadius(self._reach, threat.attempts))

    @override
    def ascents(self, rng: SampleRng) -> Iterator[tuple[EmbeddingPGD, SampleRng, SampleRng | None]]:
        """Trainings from other tokens, in a ball that no step can leave."""
        p = self.params
        pgd = EmbeddingPGD(self._reach, p.steps, p.step_size, "l2", p.direction)
        for restart in range(p.restarts):
            yield pgd, rng.fork(restart), None
