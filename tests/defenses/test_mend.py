"""MEND: vectors stand where demonstrations were, only the compressor learns, and many shots are asked of both alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustkd import plugins
from robustkd.contracts import DataError, FitContext, Prompts, Request, ThreatModel, UsageError
from robustkd.contracts.random import SampleRng
from robustkd.defenses.text.distillation.mend import MENDLoss, laid, with_turns, with_vectors
from robustkd.defenses.text.training import Demonstrations, behind_turns
from robustkd.defenses.training.divergence import kl
from robustkd.targets import CausalLMTarget, load_target, save_target
from robustkd.targets.chat import TooLong
from robustkd.targets.compressing import CompressingTarget
from support.toy_language_model import toy_language_model

WORDS = (*"abcdefghijklmnop", "no")
ROWS = (  # role, prompt, response; "no" is the refusal
    *(("forbidden", f"a {x}", f"{x} {x}") for x in "bcdef"),
    *(("task", f"g {x}", f"{x} h") for x in "ijklm"),
    ("knowledge", "a b", "b b"),
)
TURNS = (("g i", "i h"), ("a c", "c c"))


def _rows() -> Prompts:
    role, prompt, response = zip(*ROWS, strict=True)
    refusal = tuple("no" if one == "forbidden" else "" for one in role)
    columns = {"role": role, "prompt": prompt, "response": response, "refusal": refusal}
    return Prompts(columns, np.zeros(len(ROWS), dtype=np.int64))


@pytest.fixture(scope="module")
def model() -> CausalLMTarget:
    return toy_language_model(WORDS, 0, num_hidden_layers=1, initializer_range=0.25)


def _made(model: CausalLMTarget, folder: Path, **params: Any) -> tuple[CompressingTarget, list[dict[str, float]]]:
    said: list[dict[str, float]] = []
    context = FitContext(
        _rows(), _rows(), (), 1, ThreatModel.by_prompt(5), 0, torch.device("cpu"), folder, targets={"model": model},
        log=lambda step, metrics: said.append(dict(metrics)),
    )  # fmt: skip
    defense = plugins.load("defenses", "mend")
    common = {"model": "model", "tokens": 2, "shots": 2, "batch_size": 16, "lr": 0.02, "weight_ce": 0.0}
    return defense(defense.Params(**(common | params))).fit(context), said


@pytest.fixture(scope="module")
def trained(
    model: CausalLMTarget, tmp_path_factory: pytest.TempPathFactory
) -> tuple[CompressingTarget, list[dict[str, float]]]:
    return _made(model, tmp_path_factory.mktemp("mend"), steps=60)


def test_the_turns_are_what_a_conversation_has_more(model: CausalLMTarget, tmp_path: Path) -> None:
    target, _ = _made(model, tmp_path, steps=0)
    turns, plain, at = target.split(TURNS, "a d", "d d")
    whole = model.chat.told("", TURNS).encode("a d", "d d").ids
    assert plain.ids == model.encode("a d", "d d").ids
    assert plain.ids[:at] + turns + plain.ids[at:] == whole
    assert model.chat.decode(turns) == "g i i h a c c c"


def test_no_vectors_are_no_demonstrations(model: CausalLMTarget, tmp_path: Path) -> None:
    target, _ = _made(model, tmp_path, tokens=0)
    asked = [Request(prompt, turns=TURNS) for _, prompt, _ in ROWS]
    assert target.respond(asked) == model.respond([Request(one.prompt) for one in asked])
    assert target.respond(asked) != model.respond(asked)
    assert target.capabilities == {"respond", "prefill", "conversation"}


def test_what_is_asked_without_turns_is_answered_by_the_model(
    model: CausalLMTarget, trained: tuple[CompressingTarget, list[dict[str, float]]]
) -> None:
    asked = [Request(prompt, prefill=prefill) for _, prompt, _ in ROWS for prefill in ("", "b")]
    assert trained[0].respond(asked) == model.respond(asked)


def test_the_logits_are_those_of_the_model_behind_the_vectors(
    model: CausalLMTarget, trained: tuple[CompressingTarget, list[dict[str, float]]]
) -> None:
    """By hand: the compressor's last states at the queries, then the model on vectors and request, one conversation at a time."""
    target, _ = trained
    drawn = [(*TURNS, ("a d", "d d")), (TURNS[0], ("g k", "k h"))]
    read = laid(target, drawn)
    found, answers = with_vectors(target, read)
    expected, tokens = [], []
    with torch.no_grad():
        for item in read:
            text = target.compressor.embed(torch.tensor([item.turns]))
            states = target.compressor.module(
                inputs_embeds=torch.cat([text, target.module.queries[None]], 1), output_hidden_states=True
            ).hidden_states[-1][:, -2:]
            behind = model.embed(torch.tensor([item.plain.ids]))
            logits = model.module(inputs_embeds=torch.cat([states, behind], 1)).logits[0, 2:]
            places = range(item.plain.completion.start, item.plain.completion.stop)
            expected += [logits[place - 1] for place in places]
            tokens += [item.plain.ids[place] for place in places]
    assert answers.tolist() == tokens
    assert torch.allclose(found, torch.stack(expected), atol=1e-4)
    # The same vectors stand before an answer that is written.
    (said,) = target.respond([Request("a d", turns=TURNS)])
    text = torch.cat([target.vectors([read[0].turns])[0], model.embed(torch.tensor(model.encode("a d").ids))])
    assert said == model.answered([Request("a d")], lambda asked: text.detach())[0]


def test_the_compressor_learns_and_nothing_else(
    model: CausalLMTarget, trained: tuple[CompressingTarget, list[dict[str, float]]]
) -> None:
    target, said = trained
    fresh = toy_language_model(WORDS, 0, num_hidden_layers=1, initializer_range=0.25)
    for name, weight in fresh.module.state_dict().items():
        assert torch.equal(weight, model.module.state_dict()[name])
    own = target.compressor.module.state_dict()
    assert any(not torch.equal(weight, own[name]) for name, weight in fresh.module.state_dict().items())
    loss = MENDLoss(Demonstrations(((*TURNS, ("a d", "d d")),), 1, 2), plugins.load("defenses", "mend").Params(model="model"))
    target.module.requires_grad_(True)
    loss(target, torch.Generator().manual_seed(0)).backward()
    assert target.module.queries.grad.abs().sum() > 0
    last = [measured for measured in said if "validation_divergence" in measured][-1]
    assert last["validation_divergence"] < 0.5 * last["validation_divergence_of_nothing"]
    target.module.zero_grad()


def test_the_divergence_of_the_whole_conversation_from_itself_is_none(model: CausalLMTarget, tmp_path: Path) -> None:
    target, _ = _made(model, tmp_path, steps=0)
    read = laid(target, [(*TURNS, ("a d", "d d"))])
    batch = model.batch([read[0].whole])
    again = model.completion_logits(batch, model.embed(batch.ids))
    assert kl(with_turns(target, read), again, reduction="batch").item() == pytest.approx(0, abs=1e-6)


def test_it_comes_back_from_its_file_and_answers_each_alone(
    trained: tuple[CompressingTarget, list[dict[str, float]]], tmp_path: Path
) -> None:
    target, _ = trained
    asked = [Request(prompt, turns=turns) for _, prompt, _ in ROWS for turns in ((), TURNS, TURNS[:1])]
    save_target(target, tmp_path)
    again = load_target(tmp_path)
    assert isinstance(again, CompressingTarget)
    assert again.respond(asked) == target.respond(asked)
    assert [again.respond([one])[0] for one in asked] == target.respond(asked)


def test_demonstrations_are_of_the_requests_own_role_and_never_the_request() -> None:
    rows = _rows()
    drawn = Demonstrations.of(rows, rows["response"], 1, 3).draw(200, torch.Generator().manual_seed(0))
    first = {turn[0][0] for several in drawn for turn in several}
    assert {len(several) for several in drawn} == {2, 3, 4}
    assert all(len(set(several)) == len(several) for several in drawn)
    assert all(len({turn[0][0] for turn in several}) == 1 for several in drawn)
    assert first == {"a", "g"}  # the one request of `knowledge` has nothing to be shown before it
    often = Demonstrations.of(rows, rows["response"], 0, 3, {"task": 1e6}).draw(50, torch.Generator().manual_seed(0))
    assert {turn[0][0] for several in often for turn in several} == {"g"}
    with pytest.raises(DataError, match="no role of the data has two requests"):
        Demonstrations.of(rows.select(np.array([0, 5])), ("a", "b"), 1, 3)


def test_the_oldest_turns_are_left_out_where_they_do_not_fit(model: CausalLMTarget) -> None:
    several = (*TURNS * 6, ("a d", "d d"))
    shots, tokens = behind_turns(model.chat, several)
    assert several[-1 - len(shots) : -1] == shots
    assert tokens.ids == model.chat.told("", shots).encode("a d", "d d").ids
    longer = several[-2 - len(shots) : -1]
    with pytest.raises(TooLong):
        model.chat.told("", longer).encode("a d", "d d")
    fewer, _ = behind_turns(model.chat, several, room=model.chat.context - len(tokens.ids) + 1)
    assert len(fewer) == len(shots) - 1


@pytest.mark.slow
def test_a_model_that_was_told_in_turns_goes_on_behind_turns(tmp_path: Path) -> None:
    """One that never saw a turn says something else behind one."""
    said, rows = {}, _rows().select(np.arange(10))
    for turns in (0, 3):
        context = FitContext(rows, rows, (), 1, ThreatModel.by_prompt(5), 0, torch.device("cpu"), tmp_path / str(turns))
        defense = plugins.load("defenses", "lm-pretrain")
        small = {"width": 16, "layers": 1, "heads": 2, "steps": 150, "batch_size": 16, "lr": 0.02, "random_suffix_rate": 0}
        told = defense(defense.Params(**small, turns=turns)).fit(context)
        asked = [Request(prompt, turns=(("g l", "l h"),)) for role, prompt, _ in ROWS if role == "task" and prompt != "g l"]
        said[turns] = told.respond(asked)
    assert said[3] == [f"{x} h" for x in "ijkm"]
    assert said[0] != said[3]


def test_a_role_that_is_not_there_cannot_be_left_out(model: CausalLMTarget, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no request has the role 'tasks'"):
        _made(model, tmp_path, without=("tasks",))


@pytest.mark.parametrize(("harmless", "expected"), [(False, {f"a {x}" for x in "bcdef"}), (True, {f"g {x}" for x in "ijklm"})])
def test_many_shots_of_the_training_data(model: CausalLMTarget, harmless: bool, expected: set[str]) -> None:
    attack = plugins.make("attacks", {"kind": "many-shot", "training": True, "harmless": harmless})
    assert attack.traits.learns
    assert not plugins.make("attacks", {"kind": "many-shot"}).traits.learns
    rng = SampleRng(0, torch.arange(1), "test")
    fitted = attack.fit(model, _rows(), rng)
    assert {question for question, _ in fitted._pairs()} == expected
    with pytest.raises(UsageError, match="it was given none"):
        attack._pairs()
    with pytest.raises(UsageError, match="the pairs are of one or the other"):
        plugins.make("attacks", {"kind": "many-shot", "training": True, "file": "pairs.jsonl"})
