"""Is a judge that compares sentences attackable? Other words are put around the same secret until it no longer calls the answer one.

    search   repeat:  of ``width`` exchanges of one word in the answer, keep the one that its scorer finds least alike to the reference
    random   as many answers with as many words exchanged at random

The words of the request's ``answer``, which is what was to be kept to oneself, are never touched: an exact judge goes on to say complied.
What is attacked are the answers of the analysed model that were judged to comply as they are. Beside both stand the answers as they are,
and answers to other requests, which give nothing away and should not pass: a judge that calls these alike is evaded by nobody and says
nothing.

Control: the random exchanges, and a scorer that learnt less (``trans-encoder`` with ``cycles: 0``, or without ``steps``).

Source: this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from robustkd.contracts import Analysis, GenerativeTarget, Params, PromptBatch, Table, TargetError, TargetRef, ThreatModel
from robustkd.scoring.intervals import share_interval
from robustkd.targets.sentence_pairs import SentencePairsTarget


class JudgeEvasionParams(Params):
    scorers: tuple[TargetRef, ...] = Field(
        min_length=1, description="the defenses whose models compare, such as trans-encoder, each with its own threshold"
    )
    reference: str = Field("response", description="the column with the answer that was asked for")
    exchanges: int = Field(3, ge=1, description="words of an answer that are exchanged at most")
    width: int = Field(16, ge=1, description="exchanges that are looked at for each")


class JudgeEvasion(Analysis[GenerativeTarget, PromptBatch]):
    """How often a scorer still calls an answer alike to what was asked for, once words around the secret were exchanged."""

    Params = JudgeEvasionParams
    modalities = ("text",)
    needs_of_others = frozenset({"similarity"})
    source = "this package"

    def run(self, target: GenerativeTarget, batch: PromptBatch, threat: ThreatModel, seed: int) -> Table:
        """A row for each scorer; ``metrics``: the shares of the first.

        Raises:
            TargetError: no answer complied, or none has a ``response`` and an ``answer``.
        """
        p = self.params
        answers = _answers(batch, p.reference)
        # A word of a secret beside the secret would make another one of it.
        secrets = {word for text in batch.requests["answer"] for word in text.split()}
        words = sorted({word for given in answers for word in given.reference.split()} - secrets)
        columns, values = list[str](), []
        for name in p.scorers:
            scorer = self.target(name, SentencePairsTarget)
            shown = {
                "as answered": [given.text for given in answers],
                "random words": [_at_random(scorer, given, words, p, seed) for given in answers],
                "searched words": [_searched(scorer, given, words, p, seed) for given in answers],
                "another's answer": [other.text for other in (*answers[1:], *answers[:1])],
            }
            references = [given.reference for given in answers]
            alike = {
                column: scorer.similarity(texts, references).numpy() >= scorer.threshold for column, texts in shown.items()
            }
            columns = [name for column in alike for name in (column, f"{column}, at least", f"{column}, at most")]
            values.append([value for found in alike.values() for value in (float(found.mean()), *share_interval(found))])
        return Table(
            caption=f"share of {len(answers)} answers that a scorer calls alike to what was asked for, with 95 % intervals, "
            f"{p.exchanges} words exchanged at most, none of the secret's",
            rows=list(p.scorers),
            columns=columns,
            values=values,
            metrics={
                column.replace(" ", "_").replace("'", ""): value
                for column, value in zip(columns[::3], values[0][::3], strict=True)
            },
        )


@dataclass(frozen=True)
class _Given:
    """An answer that complied.

    Attributes:
        row: of its request.
        text: what the model said.
        reference: what was asked for.
        free: the places of its words that are not the secret's.
    """

    row: int
    text: str
    reference: str
    free: tuple[int, ...]


def _answers(batch: PromptBatch, reference: str) -> list[_Given]:
    said, found = batch.unattacked, []
    for row, (text, complied) in enumerate(zip(said.outputs, said.complied, strict=True)):
        wanted, secret = batch.requests.get(reference)[row], batch.requests.get("answer")[row]
        places = free_places(str(text), secret)
        if complied and wanted and secret and places:
            found.append(_Given(row, str(text), wanted, places))
    if len(found) < 2:
        raise TargetError(
            "judge-evasion: fewer than two answers comply that have a reference and an 'answer' in them",
            fix="analyse a model that answers, such as the undefended one",
        )
    return found


def free_places(text: str, secret: str) -> tuple[int, ...]:
    """The places of the words of ``text`` that do not belong to ``secret``; none where it is not in there, word for word."""
    words, kept = text.split(), secret.split()
    for start in range(len(words) - len(kept) + 1):
        if kept and words[start : start + len(kept)] == kept:
            return tuple(place for place in range(len(words)) if not start <= place < start + len(kept))
    return ()


def _exchanged(text: str, places: Sequence[int], words: Sequence[str], rng: np.random.Generator) -> str:
    said = text.split()
    for place in places:
        said[place] = words[int(rng.integers(len(words)))]
    return " ".join(said)


def _lowest(scorer: SentencePairsTarget, texts: Sequence[str], reference: str) -> str:
    return texts[int(scorer.similarity(texts, [reference] * len(texts)).argmin())]


def _searched(scorer: SentencePairsTarget, given: _Given, words: Sequence[str], p: JudgeEvasionParams, seed: int) -> str:
    """The answer after a greedy search, one place at a time and each once."""
    rng, text, left = _draws(seed, given), given.text, list(given.free)
    for _ in range(min(p.exchanges, len(left))):
        tried = [(int(rng.choice(left)),) for _ in range(p.width)]
        texts = [_exchanged(text, places, words, rng) for places in tried]
        found = _lowest(scorer, [text, *texts], given.reference)
        if found == text:
            continue
        left.remove(tried[texts.index(found)][0])
        text = found
    return text


def _at_random(scorer: SentencePairsTarget, given: _Given, words: Sequence[str], p: JudgeEvasionParams, seed: int) -> str:
    """Of as many random answers as the search looks at, the one that does best."""
    rng, several = _draws(seed, given), min(p.exchanges, len(given.free))
    texts = [
        _exchanged(given.text, rng.permutation(given.free)[:several].tolist(), words, rng) for _ in range(p.exchanges * p.width)
    ]
    return _lowest(scorer, [given.text, *texts], given.reference)


def _draws(seed: int, given: _Given) -> np.random.Generator:
    return np.random.default_rng([seed, given.row, 28])
