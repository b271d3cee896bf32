"""Put requests to a generative target and have its answers judged: the one path of every attack on prompts.

The counterpart of ``evaluation`` for targets that answer. Here, too, an attack's word is not evidence: it hands over what it
would ask, the platform asks it, judges the answer and counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from robustkd.contracts import (
    Answered,
    Asked,
    AttackError,
    Attempts,
    DataError,
    GenerativeTarget,
    Judge,
    PromptAttack,
    PromptBatch,
    Prompts,
    TargetError,
    ThreatModel,
    Transcript,
    UsageError,
)
from robustkd.contracts.random import SampleRng
from robustkd.evaluation.images import Evaluation, left_changed, marks_of
from robustkd.evaluation.judging import Outcome
from robustkd.lazy import torch
from robustkd.scoring.finite import require_finite

if TYPE_CHECKING:
    from torch import Tensor


def prepare(
    target: GenerativeTarget,
    requests: Prompts,
    index: np.ndarray,
    judges: Mapping[str, Judge],
    *,
    benign: Prompts | None = None,
    device: torch.device | str = "cpu",
) -> PromptBatch:
    """The requests with what the target answers when nobody attacks it, which every attack and analysis then shares.

    Args:
        index: (N,) positions in the data set.
        judges: the first one's verdict counts.

    Raises:
        TargetError: the target failed on a request as it is.
        DataError: the judge cannot judge such requests.
    """
    judge = _first(judges)
    unattacked = _answered(target, requests, judge)
    eligible = np.ones(len(requests), dtype=bool)
    prefills = requests.get("prefill")
    begun = np.array([bool(text) for text in prefills])
    if begun.any():
        known = _answered(target, requests.select(begun), judge, prefilled=True)
        eligible[begun] = known.complied
    harmless = None if benign is None else _answered(target, benign, judge)
    return PromptBatch(requests, torch.as_tensor(index, dtype=torch.int64, device=device), unattacked, eligible, harmless)


TOLERANCE = 1e-3
"""Of a budget in embeddings, relative: they are added up in the model's own precision."""


def evaluate_prompt_attack(
    target: GenerativeTarget,
    attack: PromptAttack,
    batch: PromptBatch,
    threat: ThreatModel,
    judges: Mapping[str, Judge],
    *,
    num_classes: int,
    seed: int = 0,
) -> Evaluation:
    """Attack every request of ``batch``. ``broken_at`` is the number of attempts after which it was broken.

    A request's category is its label; ``after`` is ``num_classes`` where it was broken, and ``before`` is ``num_classes + 1``
    where the target could not comply at all.

    Raises:
        AttackError: the attack asked what the threat model does not allow, or left the target changed.
        TargetError: the target failed under attack.
    """
    if reason := attack.refusal(threat):
        raise UsageError(f"attack '{attack.name}' {reason}", fix="choose another one")
    attack.require(target)
    attempts = JudgedAttempts(target, batch, threat, judges, type(attack).__name__)
    before = marks_of(target)
    attack.search(target, batch, attempts, threat, SampleRng(seed, batch.index))
    if marks_of(target) != before:
        raise left_changed(attack)
    return attempts.evaluation(num_classes)


@dataclass(eq=False)
class _Deciding:
    """The attempt that decided a request so far, and what it took: how many attempts, or how far embeddings were moved."""

    asked: Asked
    output: Any
    took: float


class JudgedAttempts(Attempts):
    """Asks the target, has the first judge decide, and keeps of each request the attempt that decided it."""

    def __init__(
        self, target: GenerativeTarget, batch: PromptBatch, threat: ThreatModel, judges: Mapping[str, Judge], attack: str
    ) -> None:
        self.budget = threat.attempts
        self.broken = torch.zeros(len(batch), dtype=torch.bool)
        self.used = torch.zeros(len(batch), dtype=torch.int64)
        self.answers: list[Any] = [None] * len(batch)
        self._target, self._batch, self._threat, self._judges, self._attack = target, batch, threat, judges, attack
        self._passes = torch.zeros(2, len(batch), dtype=torch.int64)
        self._deciding: list[_Deciding | None] = [None] * len(batch)

    def __call__(self, rows: Tensor, asked: Sequence[Asked]) -> Tensor:
        """See ``Attempts``."""
        rows = rows.cpu()
        places = rows.tolist()
        took = self._audit(places, asked)
        if not places:
            return torch.zeros(0, dtype=torch.bool)
        requests = self._batch.requests.select(np.asarray(places))
        asked = [
            question if question.seed is not None or not seed else replace(question, seed=int(seed))
            for question, seed in zip(asked, requests.get("seed"), strict=True)
        ]
        outputs = _respond(self._target, asked)
        success = torch.from_numpy(_judged(_first(self._judges), requests, outputs))
        self.used[rows] += 1
        for place, question, output, cost in zip(places, asked, outputs, took, strict=True):
            self.answers[place] = output
            if not self.broken[place]:
                self._deciding[place] = _Deciding(question, output, cost)
        self.broken[rows] |= success
        return success

    def spend(self, rows: Tensor, forwards: int = 0, backwards: int = 0) -> None:
        """See ``Attempts``."""
        self._passes[:, rows.cpu()] += torch.tensor([[forwards], [backwards]])

    def evaluation(self, num_classes: int) -> Evaluation:
        """What came of it; a request without an attempt stands."""
        batch, requests = self._batch, self._batch.requests
        label, eligible, broken = requests.labels, batch.eligible, self.broken.numpy()
        success = broken & eligible
        deciding = [
            found or _Deciding(Asked(prompt), output, 0)
            for found, prompt, output in zip(self._deciding, requests["prompt"], batch.unattacked.outputs, strict=True)
        ]
        used = self.used.numpy()
        outcome = Outcome(
            index=batch.index.cpu().numpy(),
            label=label,
            before=np.where(eligible, label, num_classes + 1),
            after=np.where(broken, num_classes, label),
            correct=eligible,
            success=success,
            distance=used.astype(np.float32),
            norm=used.astype(np.float32),
            loss=np.full(len(batch), np.nan, dtype=np.float32),
            forwards=(self._passes[0] + self.used).numpy(),
            backwards=self._passes[1].numpy(),
        )
        pictures = [found.output for found in deciding if isinstance(found.output, torch.Tensor)]
        return Evaluation(
            outcome,
            torch.stack(pictures).cpu() if pictures else torch.zeros(0),
            np.where(success, [found.took for found in deciding], np.inf).astype(np.float64),
            tuple(self._transcripts(deciding)),
            torch.stack(list(batch.unattacked.outputs)).cpu() if pictures else None,
        )

    def _transcripts(self, deciding: Sequence[_Deciding]) -> list[Transcript]:
        requests, outputs = self._batch.requests, [found.output for found in deciding]
        verdicts = {name: _judged(judge, requests, outputs) for name, judge in self._judges.items()}
        return [
            Transcript(
                index=int(self._batch.index[place]),
                request=requests["prompt"][place],
                prompt=found.asked.prompt,
                prefill=found.asked.prefill,
                seed=found.asked.seed,
                output=found.output if isinstance(found.output, str) else "",
                attempts=int(self.used[place]),
                verdicts={name: bool(said[place]) for name, said in verdicts.items()},
            )
            for place, found in enumerate(deciding)
        ]

    def _audit(self, places: Sequence[int], asked: Sequence[Asked]) -> list[float]:
        """What each attempt takes of the budget, counted with those before."""
        if len(places) != len(asked) or len(set(places)) != len(places):
            raise AttackError(f"{self._attack} made {len(asked)} attempts for {len(places)} requests", fix="one for each row")
        if any(self.used[place] >= self.budget for place in places):
            raise AttackError(
                f"{self._attack} makes more than {self.budget} attempts on a request",
                fix="stop at `attempts.open`, or at the budget",
            )
        space = self._threat.space
        took = [float(self.used[place]) + 1 for place in places]
        for number, question in enumerate(asked):
            used = {
                "prefill": question.prefill != "",
                "embeddings": question.embeddings is not None,
                "seed": question.seed is not None,
            }
            for what, given in used.items():
                if given and what != space:
                    raise AttackError(
                        f"{self._attack} sets the {what} of a request, but the threat model is about {space}",
                        fix=f"an attack that does declares it: space = '{what}'",
                    )
            if space == "embeddings":
                far = 0.0 if question.embeddings is None else self._target.strayed(question)
                if far > self._threat.eps * (1 + TOLERANCE):
                    raise AttackError(
                        f"{self._attack} moved an embedding by {far:.4g} mean norms, allowed is {self._threat.eps:.4g}",
                        fix="project what it adds to each token onto the ball of that radius",
                    )
                took[number] = min(far, self._threat.eps)
        return took


def _answered(target: GenerativeTarget, requests: Prompts, judge: Judge, prefilled: bool = False) -> Answered:
    prefills = requests.get("prefill") if prefilled else ("",) * len(requests)
    asked = [Asked(prompt, prefill, seed=int(seed) if seed else None) for prompt, prefill, seed in _rows(requests, prefills)]
    outputs = _respond(target, asked)
    return Answered(requests, outputs, _judged(judge, requests, outputs))


def _rows(requests: Prompts, prefills: Sequence[str]) -> Any:
    return zip(requests["prompt"], prefills, requests.get("seed"), strict=True)


def _respond(target: GenerativeTarget, asked: Sequence[Asked]) -> Sequence[Any]:
    try:
        with torch.no_grad():
            outputs = target.respond(asked)
    except (TargetError, DataError):
        raise
    except Exception as error:
        raise TargetError(
            f"the model raised {type(error).__name__}: {error}", fix="see that it answers such requests"
        ) from error
    if len(outputs) != len(asked):
        raise TargetError(f"the model gave {len(outputs)} answers to {len(asked)} requests", fix="respond with one each")
    pictures = [output for output in outputs if isinstance(output, torch.Tensor)]
    if pictures:
        # In float64, whatever each is of: of NaN and infinities one sum tells.
        require_finite(torch.stack([picture.double().sum() for picture in pictures]), "the model's pictures")
    return outputs


def _judged(judge: Judge, requests: Prompts, outputs: Sequence[Any]) -> np.ndarray:
    """(N,) bool, a copy; a judge's NaN is no verdict."""
    said = np.asarray(judge.complied(requests, outputs))
    if said.dtype.kind == "f":
        require_finite(said, f"the verdicts of the judge {type(judge).__name__}", "outputs")
    return said.astype(bool)


def _first(judges: Mapping[str, Judge]) -> Judge:
    return next(iter(judges.values()))
