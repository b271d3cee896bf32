"""Test cases: the prompts that others have found, each for its own request.

    for each prompt that a file has for the request:   answer <- target(prompt);   stop if the judge says so

So published attacks are repeated on a model of one's own, and what was found on one model is tried on another. They were found for
other models: a model that withstands them has withstood these prompts, not the attacks that made them. A request for which the files
have nothing is not judged.

Source: the test cases of Mazeika et al.: HarmBench (ICML 2024), arXiv:2402.04249; the artifacts of Chao et al.: JailbreakBench (NeurIPS
2024), arXiv:2404.01318.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from pydantic import Field

from robustkd.contracts import (
    Attempts,
    CampaignPath,
    GenerativeTarget,
    Params,
    PromptAttack,
    PromptBatch,
    Request,
    TargetError,
    ThreatModel,
)
from robustkd.contracts.random import SampleRng
from robustkd.data.attack_prompts import FoundPrompt, read_attack_prompts
from robustkd.data.behaviors import requests_by_key
from robustkd.data.text import comparable
from robustkd.lazy import torch

_LOG = logging.getLogger(__name__)


class GivenPromptsParams(Params):
    """The files of prompts."""

    files: tuple[CampaignPath, ...] = Field(
        min_length=1,
        description="of prompts by request, tried in this order: HarmBench's test cases (JSON), JailbreakBench's artifacts (JSON), "
        "transcripts.jsonl of robustkd, or CSV or JSON lines with request and prompt",
        examples=[["test_cases.json"]],
    )
    behaviors: CampaignPath | None = Field(
        None, description="for HarmBench's test cases: its CSV of behaviors, which says which request a BehaviorID is"
    )


class GivenPrompts(PromptAttack):
    """Prompts from files, each for the request that it was made for."""

    Params = GivenPromptsParams
    modalities = ("text", "text-to-image")
    iterative = False
    source = "Mazeika et al. 2024, arXiv:2402.04249; Chao et al. 2024, arXiv:2404.01318"

    def files(self) -> list[Path]:
        """The files of prompts, and of behaviors."""
        p = self.params
        return [*p.files, *([p.behaviors] if p.behaviors else [])]

    def search(
        self, target: GenerativeTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """One attempt for each prompt, in the order of the files, no more than allowed.

        Raises:
            DataError: a file cannot be read.
            TargetError: a prompt stands behind earlier turns, and the target takes none.
        """
        requests = batch.requests["prompt"]
        by_request = self._by_request()
        own = [by_request.get(comparable(request), ()) for request in requests]
        _require_turns(target, own)
        without = [row for row, prompts in enumerate(own) if not prompts]
        if without:
            why = "the files have no prompt for this request"
            if not any(own) and self.params.behaviors is None:
                why += "; of HarmBench's test cases, 'behaviors' says which request they are for"
            _LOG.warning("test-cases: %d of %d requests are not judged: %s", len(without), len(requests), why)
            attempts.leave(torch.tensor(without, dtype=torch.int64), why)
        for number in count():
            rows = [row for row in attempts.open.tolist() if number < len(own[row])]
            if not rows:
                return
            asked = [Request(own[row][number].prompt, turns=own[row][number].turns) for row in rows]
            attempts(torch.tensor(rows, dtype=torch.int64), asked)

    def _by_request(self) -> dict[str, Sequence[FoundPrompt]]:
        """The prompts of each request, by the form of its text that is compared, each once."""
        p, found = self.params, dict[str, dict[FoundPrompt, None]]()
        names = requests_by_key(p.behaviors) if p.behaviors else {}
        for file in p.files:
            for prompt in read_attack_prompts(file):
                request = comparable(names.get(prompt.request, prompt.request))
                found.setdefault(request, {})[FoundPrompt(request, prompt.prompt, prompt.turns)] = None
        return {request: tuple(prompts) for request, prompts in found.items()}


def _require_turns(target: GenerativeTarget, own: Sequence[Sequence[FoundPrompt]]) -> None:
    if "conversation" not in target.capabilities and any(prompt.turns for prompts in own for prompt in prompts):
        raise TargetError(
            f"prompts of the files stand behind earlier turns, which this target ({target.kind}) does not take",
            fix="leave these out of the files, or attack a model that takes a conversation",
        )
