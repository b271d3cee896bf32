"""What attacks share whose attacker model leads a conversation. The loop exists once; attacks differ in what the attacker is told."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

from typing_extensions import override

from robustkd.attacks.text.attacker_model.writer import LONGEST, WritingAttack, begun, said
from robustkd.contracts import Attempts, GenerativeTarget, PromptAttack, PromptBatch, Request, ThreatModel
from robustkd.contracts.prompts import Turn
from robustkd.contracts.random import SampleRng

_TURN = "You said: {prompt}\nThe assistant answered: {answer}\n\n"


@dataclass
class Conversation:
    """The conversation about one request.

    Attributes:
        turns: its messages and their answers so far.
        refused: messages that were taken back.
        firsts: with what the conversations before it began.
    """

    request: str
    turns: tuple[Turn, ...] = ()
    refused: list[str] = field(default_factory=list)
    firsts: list[str] = field(default_factory=list)


class ConversationAttack(WritingAttack):
    """An attack whose prompts are the messages of a conversation, and of further ones where it ends."""

    needs = PromptAttack.needs | {"conversation"}

    @abstractmethod
    def told(self, talk: Conversation) -> str:
        """What the attacker is told, that it may write the next message."""

    def message(self, talk: Conversation, written: str) -> str:
        """The message in what the attacker wrote: by default all of it."""
        return written

    @abstractmethod
    def heard(self, talk: Conversation, message: str, answer: str) -> None:
        """Take note of the target's answer: go on, or begin another conversation."""

    def shown(self, talk: Conversation) -> str:
        """What the attacker is shown of the conversation; at its beginning, of those before it."""
        turns = "".join(_TURN.format(prompt=text[:LONGEST], answer=self.answer(answer)) for text, answer in talk.turns)
        return turns or begun(talk.firsts)

    @override
    def search(
        self, target: GenerativeTarget, batch: PromptBatch, attempts: Attempts, threat: ThreatModel, rng: SampleRng
    ) -> None:
        """Each message is an attempt, as many as allowed. The attacker's passes are not counted.

        Raises:
            UsageError: the attacker was not handed over, or is no language model.
        """
        requests = batch.requests["prompt"]
        talks = {row: Conversation(requests[row]) for row in attempts.open.tolist()}
        while len(rows := attempts.open):
            standing = [talks[row] for row in rows.tolist()]
            written = self.written([self.told(talk) for talk in standing], [talk.request for talk in standing])
            messages = [self.message(talk, text) for talk, text in zip(standing, written, strict=True)]
            attempts(rows, [Request(text, turns=talk.turns) for talk, text in zip(standing, messages, strict=True)])
            for row, talk, text in zip(rows.tolist(), standing, messages, strict=True):
                self.heard(talk, text, said(attempts.answers[row]))
