"""A model that notes in a buffer how long its inputs were, as dynamic rotary embeddings do: no attack has changed it, for its answers are
the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from robustkd.contracts import (
    AttackError,
    Attempts,
    GenerativeTarget,
    Judge,
    PromptAttack,
    PromptBatch,
    Prompts,
    Request,
    ThreatModel,
)
from robustkd.contracts.random import SampleRng
from robustkd.evaluation.images import Evaluation
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from robustkd.judges.refusal_match import RefusalMatch
from support.toy_language_model import toy_language_model
from support.toy_text_to_image import ShowsThePicture, requests, toy


class ServedRequests(PromptAttack):
    """ServedRequests once, and adds ``shift`` to a buffer of the model."""

    shift = 0.0

    def search(
        self, target: GenerativeTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        attempts(attempts.open, [Request(prompt) for prompt in batch.requests["prompt"]])
        target.module.get_buffer("shift").add_(self.shift)


class Shifts(ServedRequests):
    shift = 100.0


def noting(module: nn.Module, reads: nn.Module) -> None:
    """The module notes what size its inputs had; it adds ``shift`` to the first unit of the outputs of ``reads``."""
    module.register_buffer("longest", torch.zeros(()))
    module.register_buffer("shift", torch.zeros(()))

    def note(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        module.longest.add_(1)

    def shift(_: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        given = getattr(output, "sample", output)
        given.data.flatten(1)[:, ::2] += module.shift
        return output

    module.register_forward_pre_hook(note, with_kwargs=True)
    reads.register_forward_pre_hook(note, with_kwargs=True)
    reads.register_forward_hook(shift)


def found(attack: PromptAttack, pictures: bool) -> Evaluation:
    if pictures:
        target, asked, judge = toy("church"), requests(3), ShowsThePicture()
        noting(target.module, target.unet)
    else:
        target, judge = toy_language_model(tuple("abcdef")), RefusalMatch(RefusalMatch.Params())
        asked = Prompts({"prompt": ("a b", "c", "d e f")}, np.zeros(3, dtype=np.int64))
        noting(target.module, target.module.model.norm)
    judges: dict[str, Judge] = {"one": judge}
    batch = prepare(target, asked, np.arange(len(asked)), judges)
    return evaluate_prompt_attack(target, attack, batch, ThreatModel.by_prompt(1), judges)


@pytest.mark.parametrize("pictures", [False, True])
def test_a_buffer_that_changes_no_answer(pictures: bool) -> None:
    assert found(ServedRequests(), pictures).outcome.attempts.tolist() == [1, 1, 1]


@pytest.mark.parametrize("pictures", [False, True])
def test_a_buffer_that_changes_the_answers(pictures: bool) -> None:
    with pytest.raises(AttackError, match="Shifts left the model changed"):
        found(Shifts(), pictures)
