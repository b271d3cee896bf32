"""Put requests to a generative target and have its answers judged: the one path of every attack on prompts.

The counterpart of ``evaluation`` for targets that answer. Here, too, an attack's word is not evidence: it hands over what it
would ask, the platform asks it, judges the answer and counts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from robustkd.contracts import (
    AttackError,
    Attempts,
    GenerativeTarget,
    Judge,
    PromptAttack,
    PromptBatch,
    Prompts,
    Request,
    Responses,
    TargetError,
    ThreatModel,
    Transcript,
    Unanswered,
    UsageError,
)
from robustkd.contracts.random import SampleRng, seed_torch
from robustkd.data.text import comparable
from robustkd.evaluation.answers import judge_outputs, respond, unanswered
from robustkd.evaluation.guarding import harmless_alarms, has_guards, rejections
from robustkd.evaluation.images import Evaluation, Shards
from robustkd.evaluation.judging import PromptOutcome
from robustkd.evaluation.pictures import stacked
from robustkd.evaluation.unchanged import alike, require_unchanged, state_of
from robustkd.lazy import torch
from robustkd.targets.guarded import unguarded
from robustkd.targets.thoughts import is_cut_off

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
    batch_size: int | None = None,
) -> PromptBatch:
    """The requests with what the target answers when nobody attacks it, which every attack and analysis then shares.

    Args:
        index: (N,) positions in the data set.
        judges: the first one's verdict counts.
        batch_size: the most requests that the target is asked at once; by default its own number.

    Raises:
        TargetError: the target failed on a request as it is, or takes no system message and a request has one.
        DataError: the judge cannot judge such requests.
    """
    _require_conversations(target, requests, benign)
    judge = _first(judges)
    unattacked = _answered(target, requests, judge, batch_size)
    eligible = np.ones(len(requests), dtype=bool)
    prefills = requests.get("prefill")
    begun = np.array([bool(text) for text in prefills])
    if begun.any() and "prefill" in target.capabilities:
        # Of the model without its guards: one that holds a request back does not make the model forget the answer.
        known = _answered(unguarded(target), requests.select(begun), judge, batch_size, prefilled=True)
        eligible[begun] = known.complied | unanswered(known.outputs)
    harmless = None if benign is None else _answered(target, benign, judge, batch_size)
    if harmless is not None and has_guards(target):
        harmless = replace(harmless, alarms=harmless_alarms(target, judge, harmless, batch_size))
    return PromptBatch(requests, torch.as_tensor(index, dtype=torch.int64, device=device), unattacked, eligible, harmless)


SHARD = 16
"""Requests that are attacked before the first of them are kept."""
TOLERANCE = 1e-3
"""Of a budget in embeddings, relative: they are added up in the model's own precision."""


def evaluate_prompt_attack(
    target: GenerativeTarget,
    attack: PromptAttack,
    batch: PromptBatch,
    threat: ThreatModel,
    judges: Mapping[str, Judge],
    *,
    seed: int = 0,
    batch_size: int | None = None,
    fit_data: Prompts | None = None,
    shards: Shards | None = None,
) -> Evaluation[PromptOutcome]:
    """Attack every request of ``batch``. ``broken_at`` is the number of attempts after which it was broken.

    Args:
        batch_size: the most attempts that are put to the target at once; by default its own number.
        fit_data: what an attack that learns is fitted on, once: training requests, none of which is attacked.
        shards: done one ``SHARD`` of requests after the other, those that are kept there already left out.

    Raises:
        AttackError: the attack asked what the threat model does not allow, or left the target changed.
        TargetError: the target failed under attack.
    """
    if reason := attack.refusal(threat):
        raise UsageError(f"attack '{attack.name}' {reason}", fix="choose another one")
    attack.require(target)
    parts, able = [], None if attack.traits.learns else attack
    for first in range(0, len(batch), SHARD if shards else max(1, len(batch))):
        found = shards.read(first, PromptOutcome) if shards else None
        if found is None:
            began = time.perf_counter()
            part = batch.select(np.arange(first, min(first + SHARD, len(batch)))) if shards else batch
            able = able or _fitted(target, attack, fit_data, batch, seed)
            if shards:
                seed_torch(seed + first)
            found = _attacked(target, able, part, threat, judges, seed, batch_size)
            if shards:
                shards.write(first, found, time.perf_counter() - began)
        parts.append(found)
    return Evaluation.joined(parts)


def _fitted(
    target: GenerativeTarget, attack: PromptAttack, data: Prompts | None, batch: PromptBatch, seed: int
) -> PromptAttack:
    """The attack after it has learnt from training requests, those that are attacked left out."""
    if data is None:
        raise UsageError(
            f"attack '{attack.name}' learns from training requests, and was given none",
            fix="pass fit_data, requests that are not attacked; in a campaign, take data with a training part",
        )
    attacked = {comparable(prompt) for prompt in batch.requests["prompt"]}
    others = data.select(np.array([comparable(prompt) not in attacked for prompt in data["prompt"]], dtype=bool))
    before, few = state_of(target), batch.requests.asked()[:2]
    rng = SampleRng(seed, torch.arange(len(others), device=batch.index.device), "fit")
    fitted = attack.fit(target if attack.knows_guards else unguarded(target), others, rng)
    known = batch.unattacked.outputs[: len(few)]
    require_unchanged(target, attack, before, known, lambda: respond(target, few, None), _same_answers)
    return fitted


def _attacked(
    target: GenerativeTarget,
    attack: PromptAttack,
    batch: PromptBatch,
    threat: ThreatModel,
    judges: Mapping[str, Judge],
    seed: int,
    batch_size: int | None,
) -> Evaluation[PromptOutcome]:
    """Attack the requests of a batch side by side."""
    attempts = JudgedAttempts(target, batch, threat, judges, type(attack).__name__, batch_size)
    before, few = state_of(target), batch.requests.asked()[:2]
    if len(attempts.open):
        searched = target if attack.knows_guards else unguarded(target)
        attack.search(searched, batch, attempts, threat, SampleRng(seed, batch.index))
    known = batch.unattacked.outputs[: len(few)]
    require_unchanged(target, attack, before, known, lambda: respond(target, few, batch_size), _same_answers)
    return attempts.evaluation()


@dataclass(eq=False)
class _Deciding:
    """The attempt that decided a request so far, and what it took: how many attempts, or how far embeddings were moved."""

    asked: Request
    output: Any
    took: float


class JudgedAttempts(Attempts):
    """Asks the target, has the first judge decide, and keeps of each request the attempt that decided it.

    It is the first that succeeded, else the last that could be judged, else the last.
    """

    def __init__(
        self,
        target: GenerativeTarget,
        batch: PromptBatch,
        threat: ThreatModel,
        judges: Mapping[str, Judge],
        attack: str,
        batch_size: int | None = None,
    ) -> None:
        self.budget = threat.attempts
        self.broken = torch.zeros(len(batch), dtype=torch.bool)
        self.used = torch.zeros(len(batch), dtype=torch.int64)
        self.answers: list[Any] = [None] * len(batch)
        self._target, self._batch, self._threat, self._judges, self._attack = target, batch, threat, judges, attack
        self._batch_size = batch_size
        self._seen = np.zeros(len(batch), dtype=bool)  # requests with an answer that could be judged
        self._passes = torch.zeros(2, len(batch), dtype=torch.int64)
        self._deciding: list[_Deciding | None] = [None] * len(batch)
        # What the target cannot be asked at all, such as what is longer than its context, it cannot be asked with more around it.
        self._left = unanswered(batch.unattacked.outputs)
        self._why: dict[int, str] = {}
        # Guards read prompts: not embeddings, and not what somebody asks who holds the weights.
        self._guarded = has_guards(target) and threat.space not in ("embeddings", "weights")
        self._fooled, self._alarms = np.zeros(len(batch), dtype=bool), np.zeros(len(batch))

    @property
    def open(self) -> Tensor:
        """See ``Attempts``; without the requests that have no answer as they are, or that the attack has left."""
        rows = super().open
        return rows[~torch.from_numpy(self._left)[rows]]

    @override
    def __call__(self, rows: Tensor, asked: Sequence[Request]) -> Tensor:
        rows = rows.cpu()
        places = rows.tolist()
        took = self._audit(places, asked)
        if not places:
            return torch.zeros(0, dtype=torch.bool)
        requests = self._batch.requests.select(np.asarray(places))
        asked = [
            replace(
                question,
                seed=own.seed if question.seed is None else question.seed,
                guidance_scale=own.guidance_scale,
                system=own.system,
                negative_prompt=own.negative_prompt,
                size=own.size,
            )
            for question, own in zip(asked, requests.asked(), strict=True)
        ]
        outputs = self._answers(asked)
        said = judge_outputs(_first(self._judges), requests, outputs)
        success = torch.from_numpy(said.complied)
        if self._guarded:
            self._watch(places, requests, asked, said.complied)
        self.used[rows] += 1
        for place, question, output, cost, judged in zip(places, asked, outputs, took, said.judged, strict=True):
            self.answers[place] = output
            if not self.broken[place] and (judged or not self._seen[place]):
                self._deciding[place] = _Deciding(question, output, cost)
            self._seen[place] |= judged
        self.broken[rows] |= success
        return success

    def _answers(self, asked: Sequence[Request]) -> list[Any]:
        """Of the target; to requests that bring weights, of the target with these."""
        groups: dict[int, list[int]] = {}
        for place, question in enumerate(asked):
            groups.setdefault(id(question.weights), []).append(place)
        outputs: list[Any] = [None] * len(asked)
        for places in groups.values():
            weights = asked[places[0]].weights
            target = self._target if weights is None else self._target.with_weights(weights)
            for place, output in zip(places, respond(target, [asked[p] for p in places], self._batch_size), strict=True):
                outputs[place] = output
        return outputs

    @override
    def leave(self, rows: Tensor, why: str) -> None:
        asked = self._batch.requests.asked()
        for place in rows.tolist():
            self._left[place], none = True, Unanswered(f"[{why}]")
            if isinstance(self._batch.unattacked.outputs[place], str):
                self._deciding[place] = self._deciding[place] or _Deciding(asked[place], none, 0)
            else:  # the picture that is shown stays the request's own
                self._why[place] = none

    @override
    def spend(self, rows: Tensor, forwards: int = 0, backwards: int = 0) -> None:
        self._passes[:, rows.cpu()] += torch.tensor([[forwards], [backwards]])

    def evaluation(self) -> Evaluation[PromptOutcome]:
        """What came of it; a request without an attempt stands."""
        batch, requests = self._batch, self._batch.requests
        eligible, used = batch.eligible, self.used.numpy()
        success = self.broken.numpy() & eligible
        deciding = [
            found or _Deciding(asked, output, 0)
            for found, asked, output in zip(self._deciding, requests.asked(), batch.unattacked.outputs, strict=True)
        ]
        outcome = PromptOutcome(
            index=batch.index.cpu().numpy(),
            label=requests.labels,
            eligible=eligible,
            success=success,
            forwards=(self._passes[0] + self.used).numpy(),
            backwards=self._passes[1].numpy(),
            unjudged=eligible & (self._left | (used > 0)) & ~self._seen,
            attempts=used,
            **({"fooled": self._fooled & eligible, "alarm": self._alarms} if self._guarded else {}),
        )
        pictures = [found.output for found in deciding if isinstance(found.output, torch.Tensor)]
        return Evaluation(
            outcome,
            stacked(pictures) if pictures else torch.zeros(0),
            np.where(success, [found.took for found in deciding], np.inf).astype(np.float64),
            tuple(self._transcripts(deciding)),
            stacked(list(batch.unattacked.outputs)) if pictures else None,
            None if batch.benign is None else batch.benign.complied,
            harmless_alarms=None if batch.benign is None else batch.benign.alarms,
        )

    def _watch(self, places: Sequence[int], requests: Prompts, asked: Sequence[Request], complied: np.ndarray) -> None:
        """Note what the guards made of attempts. The model alone is asked until it complies with one."""
        rows = np.flatnonzero(complied | ~self._fooled[places])
        found = rejections(
            self._target,
            _first(self._judges),
            requests.select(rows),
            [asked[row] for row in rows.tolist()],
            complied[rows],
            self._batch_size,
        )
        looked_at = np.asarray(places)[rows]
        self._fooled[looked_at] |= found.fooled
        self._alarms[looked_at] = found.alarm

    def _transcripts(self, deciding: Sequence[_Deciding]) -> list[Transcript]:
        requests, outputs = self._batch.requests, [found.output for found in deciding]
        verdicts = {name: judge_outputs(judge, requests, outputs) for name, judge in self._judges.items()}
        return [
            Transcript(
                index=int(self._batch.index[place]),
                request=requests["prompt"][place],
                prompt=found.asked.prompt,
                prefill=found.asked.prefill,
                seed=found.asked.seed,
                output=found.output
                if isinstance(found.output, str)
                else self._why.get(place, getattr(found.output, "reason", "")),
                attempts=int(self.used[place]),
                cut_off=is_cut_off(found.output),
                system=found.asked.system,
                turns=found.asked.turns,
                verdicts={name: bool(said.complied[place]) if said.judged[place] else None for name, said in verdicts.items()},
            )
            for place, found in enumerate(deciding)
        ]

    def _audit(self, places: Sequence[int], asked: Sequence[Request]) -> list[float]:
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
                "guidance scale": question.guidance_scale is not None,
                "system message": question.system != "",
                "negative prompt": question.negative_prompt != "",
                "size": question.size is not None,
                "weights": question.weights is not None,
            }
            for what, given in used.items():
                if given and what != space:
                    raise AttackError(
                        f"{self._attack} sets the {what} of a request, but the threat model is about {space}",
                        fix=f"an attack that does declares it: space = '{what}'",
                    )
            if space == "embeddings":
                far = 0.0 if question.embeddings is None else self._target.embedding_distance(question)
                if far > self._threat.eps * (1 + TOLERANCE):
                    raise AttackError(
                        f"{self._attack} moved an embedding by {far:.4g} mean norms, allowed is {self._threat.eps:.4g}",
                        fix="project what it adds to each token onto the ball of that radius",
                    )
                took[number] = min(far, self._threat.eps)
        return took


def _require_conversations(target: GenerativeTarget, *asked: Prompts | None) -> None:
    """A system message that a target does not take would be a condition of the experiment without an effect."""
    if "conversation" not in target.capabilities and any(any(some.get("system")) for some in asked if some is not None):
        raise TargetError(
            f"requests have a system message of their own, which this target ({target.kind}) does not take",
            fix="leave the column 'system' out, or declare 'conversation' in the target's `capabilities` if it heeds Request.system",
        )


def _answered(
    target: GenerativeTarget, requests: Prompts, judge: Judge, batch_size: int | None, prefilled: bool = False
) -> Responses:
    prefills = requests.get("prefill") if prefilled else ("",) * len(requests)
    outputs = respond(target, requests.asked(prefills), batch_size)
    return Responses(requests, outputs, judge_outputs(judge, requests, outputs).complied)


def _same_answers(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return all(
        alike(one, other) if isinstance(one, torch.Tensor) else one == other for one, other in zip(some, others, strict=True)
    )


def _first(judges: Mapping[str, Judge]) -> Judge:
    return next(iter(judges.values()))
