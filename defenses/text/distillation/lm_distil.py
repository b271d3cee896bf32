"""A language model is distilled into another: teacher x divergence x source of the texts x terms beside them.

    min_S  mean over the tokens y_i of answers y to requests x of
             weight * D(p_T(. | x, y_<i), p_S(. | x, y_<i))  -  weight_ce * log p_S(y_i | x, y_<i)
           + sinkhorn + relations * (MiniLM's relations of the last attention)

What the named methods do (``minilm``, ``lm-taid``, ``lm-sinkd``, ``osd``, ``ddk``, ``undo``, ..) are settings of this
one training. The answers y are the data's, or are written by the teacher, the student or both; with ``weight: 0`` and
``weight_ce: 1`` on a teacher's answers nothing else of it is used, which is the distillation of a model that only
answers (Kim and Rush 2016, arXiv:1606.07947; the form of UniversalNER, arXiv:2308.03279, and of the students of
frontier models).

``forbidden`` says whether there are forbidden requests among the texts: with 0 nothing forbidden is, and what the
student then refuses it has taken over without having seen it. Its controls are ``lm-finetune`` from the same start
(no teacher), and ``forbidden: 0`` beside a share above 0. No attack is trained against; what a student withstands is
its teacher's merit or none.

Source: no paper: the parts' are named where they are. Learning rates and numbers of steps are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, model_validator

from robustkd.attacks.text.engine.continuous import with_suffix
from robustkd.contracts import FitContext, Prompts, TargetError, TargetRef
from robustkd.contracts.json_value import JsonObject
from robustkd.defenses.text.distillation.engine.divergences import DivergenceParams
from robustkd.defenses.text.distillation.engine.domains import DomainParams, Domains, with_reference
from robustkd.defenses.text.distillation.engine.relations import relation_loss
from robustkd.defenses.text.distillation.engine.sources import Pool, SourceParams, Verified
from robustkd.defenses.text.distillation.engine.token_sets import SinkhornParams
from robustkd.defenses.text.random_suffix import RandomSuffix, RandomSuffixRate, RandomSuffixTokens
from robustkd.defenses.text.small import SmallModelParams, small_network
from robustkd.defenses.text.text_defense import TextDefense
from robustkd.defenses.text.training import (
    Conversations,
    TextStepParams,
    finished,
    forbidden,
    harmless_conversations,
    held_out,
    own_copy,
    train_text,
)
from robustkd.defenses.training.interpolation import InterpolationParams, MovingShare
from robustkd.defenses.training.networks import seeded_init
from robustkd.lazy import F, torch
from robustkd.targets import frozen
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import Tokens

if TYPE_CHECKING:
    from torch import Tensor


class LMDistilParams(TextStepParams):
    """Teacher, student, what is minimised, and on which texts."""

    teacher: TargetRef = Field(description="the defense whose model is distilled")
    start: TargetRef | None = Field(
        None, description="the defense whose model the student begins as; left out, it is a fresh one of the shape `student`"
    )
    student: SmallModelParams = Field(
        default_factory=SmallModelParams, description="the shape of a fresh student, which speaks its teacher's tokens"
    )
    steps: int = Field(250, ge=1, description="updates of the weights")
    lr: float = Field(7e-4, gt=0, description="learning rate of AdamW")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which it rises first")
    divergence: DivergenceParams = Field(default_factory=DivergenceParams, description="of the student from the teacher")
    weight: float = Field(1.0, ge=0, description="of the divergence")
    weight_ce: float = Field(0.0, ge=0, description="of the cross entropy of the answers themselves")
    interpolation: InterpolationParams | None = Field(
        None, description="TAID: the divergence is from logits between the student's own, as constants, and the teacher's"
    )
    sinkhorn: SinkhornParams | None = Field(None, description="SinKD: a distance of the answers' tokens as sets")
    relations: float = Field(0.0, ge=0, description="MiniLM: weight of the relations of the last attention")
    source: SourceParams = Field(default_factory=SourceParams, description="who writes the answers that are trained on")
    forbidden: float = Field(0.4, ge=0, le=1, description="share of a step's conversations that are about forbidden requests")
    knowledge: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share that tells what to know; of 'vaults' these are forbidden requests, too, with answers",
    )
    domains: DomainParams | None = Field(
        None, description="DDK: roles are drawn by how far the student lags; the two shares then only say which there are"
    )
    random_suffix_rate: RandomSuffixRate = 0.3
    random_suffix_tokens: RandomSuffixTokens = 8

    @model_validator(mode="after")
    def _something_is_learnt(self) -> LMDistilParams:
        if not (self.weight or self.weight_ce or self.sinkhorn or self.relations):
            raise ValueError("nothing is minimised: give weight, weight_ce, sinkhorn or relations")
        if self.forbidden + self.knowledge > 1:
            raise ValueError(f"forbidden {self.forbidden:g} and knowledge {self.knowledge:g} are more than all requests")
        if self.domains is not None and self.source.kind != "data":
            raise ValueError("domains are drawn from the data: leave source at {kind: data}")
        return self


class LMDistil(TextDefense):
    """A language model distilled from another defense's."""

    Params = LMDistilParams
    source = "no paper: token-level and sequence-level distillation, by the parameters"

    def fit(self, context: FitContext[Prompts]) -> CausalLMTarget:
        """Train the student.

        Raises:
            TargetError: teacher and student have different tokens.
            DataError: the data have no requests of a kind that is to be trained on.
        """
        p = self.params
        teacher = finished(context, p.teacher)
        student = self.begin(context, teacher)
        _require_one_vocabulary(p.teacher, teacher, student)
        with frozen(teacher.module):
            loss = DistillationLoss(context, teacher, p)
            return train_text(context, student, loss, p, name="distil", measure=held_out(context, teacher), memory=loss)

    def begin(self, context: FitContext[Prompts], teacher: CausalLMTarget) -> CausalLMTarget:
        """The student before its training: a copy of the model that ``start`` names, or a fresh one."""
        p = self.params
        if p.start is not None:
            student = own_copy(finished(context, p.start))
            student.module.float().requires_grad_(True)  # a step at a small rate is lost in bf16
            return student
        with seeded_init(context, "student"):
            return small_network(teacher.tokenizer, p.student).to(context.device)


class DistillationLoss(MovingShare):
    """What is minimised, a ``TextLoss``, and what it learns on the way, a ``Memory``.

    Args:
        context: the data.
        teacher: frozen by the caller.
        params: the terms and the texts.
    """

    def __init__(self, context: FitContext[Prompts], teacher: CausalLMTarget, params: LMDistilParams) -> None:
        self._teacher, self._params = teacher, params
        self._take, self._source = _texts(context, teacher, params)
        if params.interpolation is not None:
            self.begin(params.interpolation, params.steps)

    def __call__(self, target: CausalLMTarget, generator: torch.Generator) -> Tensor:
        """The loss of a step."""
        p, teacher = self._params, self._teacher
        items = self._take(target, p.batch_size, generator)
        batch = target.batch(items)
        ours, value = target.completion_logits(batch), torch.zeros((), device=target.device)
        chosen = self._chosen(items).to(ours.device)
        if not chosen.any():  # nothing was rejected
            return 0 * ours.sum()
        ours = ours[chosen]
        if p.weight or p.sinkhorn:
            with torch.no_grad():
                theirs = teacher.completion_logits(batch)[chosen]
        if p.weight:
            aim = theirs if p.interpolation is None else (1 - self.t) * ours.detach() + self.t * theirs
            apart = p.divergence(aim, ours).mean()
            if p.interpolation is not None:
                self.advance(apart.item())
            value = value + p.weight * apart
        if p.weight_ce:
            value = value + p.weight_ce * F.cross_entropy(ours, batch.ids[batch.completion][chosen])
        if p.sinkhorn is not None:
            value = value + p.sinkhorn(theirs, ours)
        if p.relations:
            value = value + p.relations * relation_loss(teacher, target, batch)
        return value

    def _chosen(self, items: list[Tokens]) -> Tensor:
        """(M,) bool, which tokens of the answers are trained on, in the order of ``completion_logits``."""
        return torch.tensor(
            [
                mark or not self._params.source.rejected
                for item in items
                for mark in (item.rejected if isinstance(item, Verified) else [True] * len(item.ids[item.completion]))
            ],
            dtype=torch.bool,
        )

    def state_dict(self) -> JsonObject:
        """Of the source, and of the moving share."""
        share = {name: getattr(self, name) for name in ("t", "trend", "previous", "done") if self._params.interpolation}
        return {"source": self._source.state_dict() if self._source else {}, "share": share}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        if self._source is not None:
            self._source.load_state_dict(dict(state["source"]))
        for name, value in dict(state["share"]).items():
            setattr(self, name, value)


Take = Callable[[CausalLMTarget, int, "torch.Generator"], "list[Tokens]"]


def _texts(context: FitContext[Prompts], teacher: CausalLMTarget, p: LMDistilParams) -> tuple[Take, Pool | Domains | None]:
    """Who gives the conversations of a step, and what of it has a state."""
    suffix = RandomSuffix.of(teacher, p.random_suffix_rate, p.random_suffix_tokens)

    def behind_words(items: list[Tokens], generator: torch.Generator) -> list[Tokens]:
        return list(map(with_suffix, items, suffix.draw(len(items), generator)))

    if p.domains is not None:
        domains = Domains(_taken(context.train, p), context, teacher, p.domains)
        return lambda student, count, generator: behind_words(domains.take(student, count, generator), generator), domains
    draw = _mixture(context, teacher, p)
    if p.source.kind == "data":
        return lambda student, count, generator: behind_words(draw(count, generator), generator), None
    pool = Pool(p.source, teacher, lambda count, generator: behind_words(draw(count, generator), generator))
    return pool.take, pool


def _taken(rows: Prompts, p: LMDistilParams) -> Prompts:
    """The rows of the roles that are trained on, with what is to be answered."""
    wanted = {"forbidden": p.forbidden > 0, "knowledge": p.knowledge > 0}
    return with_reference(rows.select(np.array([wanted.get(role, True) for role in rows["role"]])))


def _mixture(
    context: FitContext[Prompts], teacher: CausalLMTarget, p: LMDistilParams
) -> Callable[[int, torch.Generator], list[Tokens]]:
    """Draws so many conversations of the data: forbidden requests with their refusals, what to know, and harmless ones."""
    parts: list[tuple[Conversations, float]] = []
    if p.forbidden:
        rows = forbidden(context.train)
        parts.append((Conversations.of(teacher, rows["prompt"], rows["refusal"]), p.forbidden))
    known = context.train.where("role", "knowledge")
    if p.knowledge and len(known):
        parts.append((Conversations.of(teacher, known["prompt"], known["response"]), p.knowledge))
    if sum(share for _, share in parts) < 1:
        parts.append((harmless_conversations(context, teacher, p), 1.0))

    def draw(count: int, generator: torch.Generator) -> list[Tokens]:
        items: list[Tokens] = []
        for place, (some, share) in enumerate(parts):
            left = count - len(items)
            items += some.take(some.draw(left if place == len(parts) - 1 else min(left, round(share * count)), generator))
        return items

    return draw


def _require_one_vocabulary(name: str, teacher: CausalLMTarget, student: CausalLMTarget) -> None:
    if teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab():
        raise TargetError(
            f"the student's tokens are not those of its teacher '{name}', whose distributions are over its own",
            fix="begin with a model of the same tokenizer, or leave 'start' out for a fresh student",
        )
