"""A language model with guards beside the same model without them: what the guards reject, rightly and wrongly.

Guards that hold prompts back have a score, ``GuardedTarget.alarm``. Of others, such as a vote over changed copies, it is known which
answers they turned into refusals: there the score is 1 where they did and -1 elsewhere.

A served model is not looked at without its guards, since every answer of it costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robustkd.contracts import GenerativeTarget, Judge, Prompts, Request, Responses
from robustkd.evaluation.answers import judge_outputs, respond
from robustkd.lazy import torch
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.guarded import guards_of, read, unguarded

UNREADABLE = 1e6
"""The alarm about a prompt that a guard cannot read: it does not let it pass."""


@dataclass(frozen=True)
class Rejections:
    """What guards make of N prompts.

    Attributes:
        fooled: (N,) bool, whether the model complies without its guards, or with them.
        alarm: (N,) float64, above 0 where they reject a prompt.
    """

    fooled: np.ndarray
    alarm: np.ndarray


def has_guards(target: GenerativeTarget) -> bool:
    """Whether it is a local language model with guards."""
    return bool(guards_of(target)) and isinstance(unguarded(target), CausalLMTarget)


def rejections(
    target: GenerativeTarget,
    judge: Judge,
    requests: Prompts,
    asked: Sequence[Request],
    complied: np.ndarray,
    batch_size: int | None = None,
) -> Rejections:
    """What the guards of ``target`` make of the prompts ``asked``.

    The model alone is asked those that it does not comply with behind the guards.

    Args:
        judge: of the answers.
        requests: what the prompts are for, which the judge goes by.
        complied: (N,) bool, with which of them the guarded model complies.
    """
    fooled, rows = complied.copy(), np.flatnonzero(~complied)
    if len(rows):
        outputs = respond(unguarded(target), [asked[row] for row in rows.tolist()], batch_size)
        fooled[rows] = judge_outputs(judge, requests.select(rows), outputs).complied
    return Rejections(fooled, _scores(target, asked) if _scored(target) else _votes(fooled, complied))


def harmless_alarms(target: GenerativeTarget, judge: Judge, harmless: Responses, batch_size: int | None = None) -> np.ndarray:
    """(M,) float64, the alarms about harmless requests as they are."""
    asked = harmless.requests.asked()
    if _scored(target):
        return _scores(target, asked)
    return rejections(target, judge, harmless.requests, asked, harmless.complied, batch_size).alarm


def _scored(target: GenerativeTarget) -> bool:
    return all(guard.filters and guard.scored for guard in guards_of(target))


def _scores(target: GenerativeTarget, asked: Sequence[Request]) -> np.ndarray:
    """(N,) the highest of the guards' alarms."""
    texts = [read(question) for question in asked]
    if not texts:
        return np.zeros(0)
    alarms = torch.stack([guard.alarm(texts) for guard in guards_of(target)]).amax(0)
    found: np.ndarray = alarms.nan_to_num(UNREADABLE).clamp(-UNREADABLE, UNREADABLE).double().numpy()
    return found


def _votes(fooled: np.ndarray, complied: np.ndarray) -> np.ndarray:
    return np.where(fooled & ~complied, 1.0, -1.0)
