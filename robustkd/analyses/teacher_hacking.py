"""Teacher hacking: does a student that comes nearer to its teacher go away from what the teacher was taught?

    proxy(s) = mean KL(teacher || s),     golden(s) = mean KL(oracle || s)        over the tokens of good answers to held-out requests

The oracle is what the teacher imitates; the student only ever sees the teacher. Where the proxy falls from one student to the next and
the golden distance rises, the student has learnt the teacher's errors: it hacks the teacher. The students are named in the order of their
training, such as one recipe with more and more steps.

``hacking`` is by how much the last student's golden distance is above the smallest of those before it, where its proxy is below theirs; 0
where there is none.

Control: the oracle as the teacher, of whom both distances are one.

From the authors: both distances on held-out requests, and what counts as hacking. From us: distances token by token behind good answers,
which need no samples.

Source: Tiapkin et al.: On teacher hacking in language model distillation (2025), arXiv:2502.02671; read in the abstract only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from robustkd.analyses.perplexity import encoded, harmless_chats
from robustkd.contracts import Analysis, GenerativeTarget, Params, PromptBatch, Table, TargetError, TargetRef, ThreatModel
from robustkd.lazy import torch
from robustkd.targets.causal_lm import CausalLMTarget
from robustkd.targets.chat import Tokens

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 16


class TeacherHackingParams(Params):
    """The students in the order of their training, and what the teacher imitates."""

    oracle: TargetRef = Field(description="the defense whose model the teacher imitates")
    students: tuple[TargetRef, ...] = Field(
        min_length=1, description="students of the analysed teacher, in the order of their training"
    )
    samples: int = Field(256, ge=1, description="chats at most")


class TeacherHacking(Analysis[GenerativeTarget, PromptBatch]):
    """How far each student is from the teacher, and from the oracle that the teacher imitates."""

    Params = TeacherHackingParams
    modalities = ("text",)
    source = "Tiapkin et al. 2025, arXiv:2502.02671"

    def run(self, target: GenerativeTarget, batch: PromptBatch, threat: ThreatModel, seed: int) -> Table:
        """A row for the teacher and for each student; ``metrics``: both distances of the last one, and ``hacking``.

        Raises:
            TargetError: a model is no language model with the teacher's tokens, or no harmless request comes with an answer.
        """
        teacher = _reading(target, "the teacher")
        oracle = _reading(self.target(self.params.oracle), f"oracle '{self.params.oracle}'", teacher)
        chats = [tokens for _, *chat in harmless_chats(batch)[: self.params.samples] if (tokens := encoded(teacher, *chat))]
        if not chats:
            raise TargetError(
                "teacher-hacking: no harmless request comes with an answer that the context holds",
                fix="take data whose harmless requests have a column 'response'",
            )
        rows = {"the teacher": (0.0, distance(oracle, teacher, chats))}
        for name in self.params.students:
            student = _reading(self.target(name), f"student '{name}'", teacher)
            rows[name] = distance(teacher, student, chats), distance(oracle, student, chats)
        found = [rows[name] for name in self.params.students]
        return Table(
            caption=f"mean divergence in nats a token, over the answers in {len(chats)} chats: from the teacher, and from the oracle",
            rows=list(rows),
            columns=["proxy", "golden"],
            values=[list(pair) for pair in rows.values()],
            metrics={"proxy": found[-1][0], "golden": found[-1][1], "hacking": hacking(found)},
        )


def hacking(found: list[tuple[float, float]]) -> float:
    """By how much the last golden distance is above the smallest of those before it whose proxy is larger than the last; 0 of none."""
    proxy, golden = found[-1]
    before = [other for nearer, other in found[:-1] if nearer > proxy]
    return max(0.0, golden - min(before)) if before else 0.0


def distance(from_: CausalLMTarget, to: CausalLMTarget, chats: list[Tokens]) -> float:
    """The mean over the answers' tokens of KL(from_ || to), in nats."""
    total, count = 0.0, 0
    with torch.no_grad():
        for first in range(0, len(chats), _ROWS):
            part = chats[first : first + _ROWS]
            log_p, log_q = (_log_probabilities(model, part) for model in (from_, to))
            total += float((log_p.exp() * (log_p - log_q)).nan_to_num(0.0).sum())
            count += len(log_p)
    return total / count


def _log_probabilities(model: CausalLMTarget, chats: list[Tokens]) -> Tensor:
    """(M, V) float64 of the M tokens of the answers."""
    batch = model.batch(chats)
    logits = model.module(input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False).logits
    log_p: Tensor = logits[:, :-1][batch.completion[:, 1:]].cpu().double().log_softmax(1)
    return log_p


def _reading(target: object, who: str, like: CausalLMTarget | None = None) -> CausalLMTarget:
    if not isinstance(target, CausalLMTarget):
        kind = getattr(target, "kind", type(target).__name__)
        raise TargetError(
            f"teacher-hacking: {who} is a {kind}, which tells no probabilities", fix="name a local language model"
        )
    if like is not None and target.tokenizer.get_vocab() != like.tokenizer.get_vocab():
        raise TargetError(
            f"teacher-hacking: {who} has other tokens than the teacher", fix="name one that was distilled from it"
        )
    return target
