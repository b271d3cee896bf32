"""PAIR: another language model writes the prompts, and learns from the answers.

    for each strategy, side by side:   prompt <- attacker(strategy, request)
    repeat:   answer <- target(prompt);  stop if the judge says so;   prompt <- attacker(strategy, request, prompt, answer)

It needs nothing of the target but its answers, and its prompts are sentences. It is as strong as the attacker is clever: a small
one writes little that works, so its failure says nothing about the target. Here the attacker answers greedily, and streams differ
by the strategy that they are told; it is told its last four prompts, as in the authors' code, and their answers, but no judge's score.

Control: ``feedback: false``: as many prompts, by an attacker that is not shown the answers.

Source: Chao et al.: Jailbreaking black box large language models in twenty queries (2023), arXiv:2310.08419, algorithm 1, and
github.com/patrickrchao/JailbreakingLLMs.
"""

from __future__ import annotations

from pydantic import Field
from typing_extensions import override

from robustkd.attacks.text.attacker_model.writer import LONGEST, REMEMBERED, STRATEGIES, WriterParams, WritingAttack, task
from robustkd.contracts import Attempts, GenerativeTarget, PromptBatch, Request, ThreatModel
from robustkd.contracts.random import SampleRng

_TRIED = "\n\nYou have tried this prompt: {prompt}\nThe assistant answered: {answer}\nThat was not it."
_AGAIN = " Write a better prompt."


class PAIRParams(WriterParams):
    """The model that writes the prompts, the strategies that it is told, and the rounds of each."""

    rounds: int = Field(4, ge=1, description="prompts of each strategy, each but the first an improvement of the last")
    strategies: tuple[str, ...] = Field(
        STRATEGIES, min_length=1, description="what the attacker is told to do, one for each stream"
    )


class PAIR(WritingAttack):
    """Prompts by an attacker model, refined by the answers that they get."""

    Params = PAIRParams
    source = "Chao et al. 2023, arXiv:2310.08419"
    # 1 told the attacker its last prompt alone, so that it could go back to the one before; 2 sent its thoughts as well
    version = "3"

    @override
    def most_attempts(self, allowed: int) -> int:
        return min(allowed, self.params.rounds * len(self.params.strategies))

    def search(
        self, target: GenerativeTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """``rounds`` times as many attempts as there are strategies, no more than allowed. The attacker's passes are not counted.

        Raises:
            UsageError: the attacker was not handed over, or is no language model.
        """
        requests = batch.requests
        history: dict[tuple[int, str], list[str]] = {}
        for _ in range(self.params.rounds):
            for strategy in self.params.strategies:
                rows = attempts.open
                told = [task(requests, row, strategy) + _shown(history.get((row, strategy), [])) for row in rows.tolist()]
                prompts = self.written(told, [requests["prompt"][row] for row in rows.tolist()])
                attempts(rows, [Request(prompt) for prompt in prompts])
                for row, prompt in zip(rows.tolist(), prompts, strict=True):
                    tried = _TRIED.format(prompt=prompt[:LONGEST], answer=self.answer(attempts.answers[row]))
                    history.setdefault((row, strategy), []).append(tried)


def _shown(tried: list[str]) -> str:
    return "".join(tried[-REMEMBERED:]) + _AGAIN if tried else ""
