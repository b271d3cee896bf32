"""Ask a generative target, and have a judge say what its answers give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robustkd.contracts import (
    DataError,
    Filtered,
    GenerativeTarget,
    Judge,
    Judgements,
    Prompts,
    Request,
    TargetError,
    Unanswered,
)
from robustkd.contracts.errors import raised_by
from robustkd.lazy import torch
from robustkd.scoring.finite import require_finite
from robustkd.targets.memory import in_memory
from robustkd.targets.thoughts import answer_of

if TYPE_CHECKING:
    from torch import Tensor


def respond(target: GenerativeTarget, asked: Sequence[Request], batch_size: int | None) -> Sequence[Any]:
    """The target's answers; fewer at once where memory runs out.

    Raises:
        TargetError: it failed, gave another number of answers, or a picture that is not finite.
    """

    def answered(rows: Tensor) -> Sequence[Any]:
        part = [asked[row] for row in rows.tolist()]
        outputs = target.respond(part)
        if len(outputs) != len(part):
            raise TargetError(f"the model gave {len(outputs)} answers to {len(part)} requests", fix="respond with one each")
        return outputs

    with raised_by("the model", TargetError, "see that it answers such requests"), torch.no_grad():
        parts = in_memory(answered, torch.arange(len(asked)), batch_size or max(1, len(asked)))
    outputs = [output for part in parts for output in part]
    pictures = [output for output in outputs if isinstance(output, torch.Tensor)]
    if pictures:
        # In float64, whatever each is of, and on the CPU, as not every device has that: of NaN and infinities one sum tells.
        require_finite(torch.stack([picture.cpu().double().sum() for picture in pictures]), "the model's pictures")
    return outputs


def judge_outputs(judge: Judge, requests: Prompts, outputs: Sequence[Any]) -> Judgements:
    """What the judge says of the answers, without the thoughts before them.

    Of an empty text, a thought that was cut off and a picture of one colour nobody can say whether it refuses. What a filter held
    back is a refusal, and no judge is asked.
    """
    answers = [_answer(output) for output in outputs]
    given = np.array([_says_something(answer) for answer in answers], dtype=bool)
    refused = np.array([_refused(output) for output in outputs], dtype=bool)
    with raised_by(f"the judge '{judge.name}'", DataError, "see that it judges such answers"):
        complied = judge.complied(requests, ["" if answer is None else answer for answer in answers])
    said = Judgements.of(complied).only(given)
    return Judgements(said.complied & ~refused, said.judged | refused)


def _refused(output: Any) -> bool:
    """Whether a filter held the answer back."""
    if not isinstance(output, torch.Tensor):
        return isinstance(output, Filtered)
    from robustkd.targets.withheld import Withheld  # late: it imports torch

    return isinstance(output, Withheld)


def unanswered(outputs: Sequence[Any]) -> np.ndarray:
    """(N,) bool, of which outputs there is no answer."""
    return np.array([isinstance(output, Unanswered) for output in outputs], dtype=bool)


def _answer(output: Any) -> Any:
    if isinstance(output, Filtered | Unanswered):
        return None
    return answer_of(output) if isinstance(output, str) else output


def _says_something(answer: Any) -> bool:
    if isinstance(answer, torch.Tensor):
        return bool(answer.amax() > answer.amin())
    return answer is not None and (not isinstance(answer, str) or answer.strip() != "")
