"""What is asked of plug-ins for models that are asked: attacks on prompts, defenses of such models, judges, data sets of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from robustkd import plugins
from robustkd.contracts import (
    DataError,
    GenerativeTarget,
    Judge,
    Judgements,
    PromptAttack,
    Prompts,
    RawData,
    Request,
    Transcript,
    target_references,
)
from robustkd.lazy import torch
from robustkd.plugin_kit import fixtures, prompt_fixtures
from robustkd.plugin_kit.properties.datasets import raw_data
from robustkd.plugin_kit.subject import NotApplicable, Subject, generators_at, listed, require

# --- attacks


def asks_what_it_may(subject: Subject) -> None:
    """It makes no more attempts than are allowed, and touches nothing but what its space names (the platform refuses the rest)."""
    _transcripts(subject)


def same_attempts(subject: Subject) -> None:
    """One seed gives the same attempts, whatever else has drawn random numbers before."""
    found = []
    for elsewhere in (1, 2):
        with generators_at(elsewhere):
            found.append(_transcripts(subject))
    require(
        found[0] == found[1],
        "two runs with one seed differ",
        "take random numbers from rng alone, which has a stream for each request",
    )


def each_request_alone(subject: Subject) -> None:
    """What becomes of a request depends on no other request of its batch."""
    whole = {said.index: said for said in _transcripts(subject)}
    for part in ([5, 4, 3, 2, 1, 0], [0], [1, 2, 3]):
        moved = [str(said.index) for said in _transcripts(subject, part) if said != whole[said.index]]
        require(
            not moved,
            f"attacked as a batch of {len(part)}, the requests {listed(moved)} end elsewhere",
            "stop and schedule each request by itself; draw from rng.select(rows)",
        )


def leaves_the_model_alone(subject: Subject) -> None:
    """The model and the global random generators are left as they were."""
    target = _oracle(subject)
    with fixtures.left_alone("it", target.module):
        _run(subject, target)


PROMPT_ATTACK = (asks_what_it_may, same_attempts, each_request_alone, leaves_the_model_alone)

# --- defenses


def answers(subject: Subject) -> None:
    """It returns a generative target in evaluation mode, which gives one answer for each request."""
    target = _made(subject)
    require(isinstance(target, GenerativeTarget), f"fit returned a {type(target).__name__}", "return a GenerativeTarget")
    training = [name or "the network" for name, child in target.module.named_modules() if child.training]
    require(not training, f"{training[:1]} is in training mode", "target.module.eval() before it is returned")
    require(
        len(_asked(target)) == len(prompt_fixtures.SUBJECTS), "it does not give one answer each", "return as many as are asked"
    )


def answers_one_by_one(subject: Subject) -> None:
    """An answer does not depend on what else is asked with it."""
    target = _made(subject)
    whole, alone = _asked(target), [_asked(target, [row])[0] for row in range(len(prompt_fixtures.SUBJECTS))]
    moved = [str(row) for row, pair in enumerate(zip(whole, alone, strict=True)) if not _same(*pair)]
    require(
        not moved,
        f"asked alone, the requests {listed(moved)} are answered otherwise",
        "pad on the left; draw by each one's seed",
    )


def saved_and_loaded_again(subject: Subject) -> None:
    """The target comes back from its files with the same answers."""
    target = _made(subject)
    again = fixtures.saved_and_loaded(target)
    assert isinstance(again, GenerativeTarget)
    same = all(_same(*pair) for pair in zip(_asked(target), _asked(again), strict=True))
    require(
        same,
        "saved and loaded, it answers differently",
        "everything that it answers by is a parameter, a buffer, or in the card",
    )


def can_what_it_declares(subject: Subject) -> None:
    """Its target has the capabilities that the defense names before it is made."""
    made = _made(subject)
    absent = subject.make().target_capabilities({}) - made.capabilities
    require(
        not absent,
        f"it names {listed(sorted(absent))} in target_capabilities, and its target does not have it",
        'return frozenset({"respond"}) for a target that only answers; else name what its `capabilities` have',
    )


PROMPT_DEFENSE = (answers, can_what_it_declares, answers_one_by_one, saved_and_loaded_again)

# --- judges


def judges(subject: Subject) -> None:
    """It gives one verdict, true or false, for each request and output."""
    said = _verdicts(subject, *_exhibits(subject))
    n = len(_exhibits(subject)[0])
    require(isinstance(said, np.ndarray), f"complied returned a {type(said).__name__}", "return a NumPy array")
    require(said.shape == (n,), f"{n} outputs get verdicts of shape {said.shape}", "one for each output")
    require(said.dtype == bool, f"verdicts are {said.dtype}", "return np.array([..], dtype=bool)")


def each_output_alone(subject: Subject) -> None:
    """A verdict depends on no other output, and is the same every time."""
    requests, outputs = _exhibits(subject)
    whole = _verdicts(subject, requests, outputs)
    alone = [
        bool(_verdicts(subject, requests.select(np.array([row])), outputs[row : row + 1])[0]) for row in range(len(outputs))
    ]
    moved = [str(row) for row, said in enumerate(alone) if said != whole[row]]
    require(not moved, f"judged alone, the outputs {listed(moved)} get other verdicts", "judge each by itself; draw nothing")


def tells_apart(subject: Subject) -> None:
    """It does not say the same of everything: of what was asked for, of a refusal, of silence."""
    said = _verdicts(subject, *_exhibits(subject))
    if "text" not in subject.plugin.modalities:
        raise NotApplicable("the suite has no pictures of what its requests ask for")
    require(
        len(set(said.tolist())) > 1,
        f"it says {bool(said[0])} of everything",
        "look at the output, and at the request's columns",
    )


JUDGE = (judges, each_output_alone, tells_apart)

# --- data


def loads_prompts(subject: Subject) -> None:
    """It loads requests with a category each, and names judges that there are."""
    raw = raw_data(subject)
    require(isinstance(raw, RawData), f"load returned a {type(raw).__name__}", "return a robustkd.contracts.RawData")
    for part in (part for part in (raw.train, raw.test, raw.benign) if part is not None):
        require(isinstance(part, Prompts), f"a part is a {type(part).__name__}", "return robustkd.contracts.Prompts")
        part.validated(subject.name, len(raw.classes))
    require(
        raw.benign is not None, "there are no harmless requests", "RawData(.., benign=..): else refusing everything looks best"
    )
    for name, use in subject.plugin.judges.items():
        known = use.get("kind") in plugins.names("judges")
        require(
            known,
            f"its judge '{name}' is of kind {use.get('kind')!r}, which is not installed",
            "name one of `robustkd list judges`",
        )


def same_prompts(subject: Subject) -> None:
    """Loaded twice, it is the same data in the same order."""
    first, second = raw_data(subject), raw_data(subject)
    for name in ("train", "test", "benign"):
        one, other = getattr(first, name), getattr(second, name)
        same = (one is None and other is None) or one.digest() == other.digest()
        require(same, f"loaded twice, the {name} requests differ", "draw from a generator with a seed of its own")


PROMPT_DATASET = (loads_prompts, same_prompts)


def _oracle(subject: Subject) -> prompt_fixtures.Oracle:
    return prompt_fixtures.Oracle(draws="text" not in subject.plugin.modalities)


def _run(subject: Subject, target: prompt_fixtures.Oracle, rows: Sequence[int] | None = None) -> Sequence[Transcript]:
    attack: PromptAttack = subject.make()
    if target_references(attack.params):
        raise NotApplicable("it asks other models, too: try it in a campaign")
    if missing := attack.missing(target.capabilities):
        raise NotApplicable(f"it needs {' and '.join(missing)} of a model, which the suite's has not: try it in a campaign")
    if absent := [file.name for file in attack.files() if not file.exists()]:
        raise NotApplicable(f"it reads a file, such as {absent[0]}, which the suite has not: try it in a campaign")
    return prompt_fixtures.attacked(attack, target, rows).transcripts


def _transcripts(subject: Subject, rows: Sequence[int] | None = None) -> Sequence[Transcript]:
    return _run(subject, _oracle(subject), rows)


def _made(subject: Subject) -> Any:
    """The target of a defense that only loads or writes one: to train one takes the data that it is for, and time."""
    if subject.plugin.uses_data or target_references(subject.make().params):
        raise NotApplicable("it trains, or stands on another model: try it in a campaign of a few steps")
    if "made" not in subject.memo:
        with fixtures.context() as context:
            subject.memo["made"] = subject.make().fit(context)
    return subject.memo["made"]


def _asked(target: GenerativeTarget, rows: Sequence[int] | None = None) -> Sequence[Any]:
    prompts = prompt_fixtures.requests()["prompt"]
    chosen = range(len(prompts)) if rows is None else rows
    with torch.no_grad():
        return target.respond([Request(prompts[row], seed=row) for row in chosen])


def _same(one: Any, other: Any) -> bool:
    return bool(torch.allclose(one, other, atol=1e-4)) if isinstance(one, torch.Tensor) else bool(one == other)


def _exhibits(subject: Subject) -> tuple[Prompts, list[Any]]:
    """Requests and outputs: what was asked for, a refusal, something else, nothing; or pictures of nothing in particular."""
    requests = prompt_fixtures.requests()
    if "text" not in subject.plugin.modalities:
        generator = torch.Generator().manual_seed(0)
        return requests, [torch.rand(3, 32, 32, generator=generator) for _ in range(len(requests))]
    answer, refusal = requests["answer"][0], requests["refusal"][0]
    return requests, [f"Sure: it is {answer}, as you asked.", refusal, "The weather is fine.", "", refusal, answer]


def _verdicts(subject: Subject, requests: Prompts, outputs: Sequence[Any]) -> np.ndarray:
    judge: Judge = subject.make()
    if target_references(judge.params):
        raise NotApplicable("it judges with a model of the campaign: try it in one")
    try:
        said = judge.complied(requests, outputs)
    except DataError as error:
        raise NotApplicable(f"it judges requests of another kind: {error.message}") from None
    return said.complied if isinstance(said, Judgements) else said
