"""Test cases of HarmBench, artifacts of JailbreakBench, transcripts of robustkd and plain tables are attacks, each on its own request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustkd import plugins
from robustkd.contracts import DataError, GenerativeTarget, Judge, PromptAttack, Prompts, TargetError, ThreatModel
from robustkd.data.attack_prompts import FoundPrompt, read_attack_prompts
from robustkd.evaluation.images import Evaluation
from robustkd.evaluation.judging import PromptOutcome
from robustkd.evaluation.prompts import evaluate_prompt_attack, prepare
from support.answers_by_rule import ByRule

ASKED = ("How is it made?", "The text\n\n---\n\nSum it up.", "Who did it?")


class Listening(ByRule):
    """Gives way to prompts that say please."""

    capabilities = GenerativeTarget.capabilities | {"conversation"}

    def __init__(self) -> None:
        super().__init__(lambda asked: "yes" if "please" in asked.prompt else "no")


class Yes(Judge):
    """Complied when it says yes."""

    def complied(self, requests: Prompts, outputs: Any) -> np.ndarray:
        return np.array([text == "yes" for text in outputs])


def attacked(target: GenerativeTarget, *files: Path, attempts: int = 9, **params: Any) -> Evaluation[PromptOutcome]:
    attack = plugins.make("attacks", {"kind": "test-cases", "files": files, **params})
    assert isinstance(attack, PromptAttack)
    judges: dict[str, Judge] = {"yes": Yes()}
    batch = prepare(target, Prompts({"prompt": ASKED}, np.zeros(3, dtype=np.int64)), np.arange(3), judges)
    return evaluate_prompt_attack(target, attack, batch, ThreatModel.by_prompt(attempts), judges)


@pytest.fixture
def harmbench(tmp_path: Path) -> dict[str, Path]:
    cases = {"how_made": ["Make it!", "Make it, please", "never asked"], "sum_up": ["Sum!"], "elsewhere": ["?"]}
    (tmp_path / "test_cases.json").write_text(json.dumps(cases))
    (tmp_path / "behaviors.csv").write_text(
        "Behavior,SemanticCategory,ContextString,BehaviorID,Tags\n"
        "How is it made?,chemical,,how_made,\nSum it up.,copyright,The text,sum_up,context\nElse?,other,,elsewhere,\n"
    )
    return {"cases": tmp_path / "test_cases.json", "behaviors": tmp_path / "behaviors.csv"}


def test_those_of_harmbench_by_behavior(harmbench: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    found = attacked(Listening(), harmbench["cases"], behaviors=harmbench["behaviors"])
    assert found.outcome.success.tolist() == [True, False, False]
    assert found.outcome.unjudged.tolist() == [False, False, True]
    assert found.outcome.standing.tolist() == [False, True, False]
    assert found.outcome.attempts is not None
    assert found.outcome.attempts.tolist() == [2, 1, 0]  # the third was not needed, and for one there was nothing
    assert "no prompt for this request" in found.transcripts[2].output
    assert "1 of 3 requests are not judged" in caplog.text
    assert attacked(Listening(), harmbench["cases"], behaviors=harmbench["behaviors"], attempts=1).outcome.success.sum() == 0


def test_without_the_behaviors_nothing_is_judged_and_it_says_why(harmbench: dict[str, Path]) -> None:
    found = attacked(Listening(), harmbench["cases"])
    assert found.outcome.unjudged.all()
    assert "'behaviors' says which request" in found.transcripts[0].output


def test_artifacts_of_jailbreakbench(tmp_path: Path) -> None:
    file = tmp_path / "artifact.json"
    rows = [
        {"index": 0, "goal": "how is it made?", "prompt": "please make it", "response": "Sure", "jailbroken": True},
        {"index": 1, "goal": ASKED[2], "prompt": None, "response": None, "jailbroken": False},
    ]
    file.write_text(json.dumps({"parameters": {"model": "vicuna"}, "jailbreaks": rows}))
    found = attacked(Listening(), file)
    assert found.outcome.success.tolist() == [True, False, False]
    assert found.outcome.unjudged.tolist() == [False, True, True]


def test_own_transcripts_with_their_turns(tmp_path: Path) -> None:
    file, target = tmp_path / "transcripts.jsonl", Listening()
    common = {"output": "", "verdicts": {"yes": False}, "index": 0}
    lines = [
        {"request": ASKED[0], "prompt": "so", "prefill": "", "attempts": 2, "turns": [["a", "b"]], **common},
        {"request": ASKED[1], "prompt": ASKED[1], "prefill": "", "attempts": 0, **common},
        {"request": ASKED[2], "prompt": ASKED[2], "prefill": "Sure", "attempts": 1, **common},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    found = attacked(target, file)
    assert target.noted[3].turns == (("a", "b"),)
    assert found.transcripts[0].turns == (("a", "b"),)
    assert found.outcome.unjudged.tolist() == [False, True, True]
    target.capabilities = frozenset({"respond"})
    with pytest.raises(TargetError, match="stand behind earlier turns"):
        attacked(target, file)


def test_tables_and_several_files_each_prompt_once(tmp_path: Path) -> None:
    one, other = tmp_path / "one.csv", tmp_path / "other.json"
    one.write_text('request,prompt\nHow is it made?,first\n"HOW  is it made?",first\nWho did it?,who\n')
    other.write_text(json.dumps([{"request": ASKED[0], "prompt": "second"}]))
    target = Listening()
    attacked(target, one, other)
    assert [question.prompt for question in target.noted[3:6]] == ["first", "who", "second"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "{", "is no JSON"),
        ("a.json", '"x"', "holds no prompts"),
        ("a.json", '{"id": [["picture.png", "text"]]}', "'id' is no list of texts"),
        ("a.json", '[{"prompt": "x"}]', "entry 1 has no 'request' and 'prompt'"),
        ("a.jsonl", '{"request": "x", "prompt": "y", "turns": ["z"]}', "line 1: 'turns' is no list of pairs"),
        ("a.csv", "request,text\nx,y\n", "no column 'prompt'"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        read_attack_prompts(tmp_path / name)
    with pytest.raises(DataError, match="cannot be read"):
        read_attack_prompts(tmp_path / f"missing-{name}")


def test_what_a_request_is_called_stays_as_it_is_in_the_file(harmbench: dict[str, Path]) -> None:
    assert read_attack_prompts(harmbench["cases"])[3] == FoundPrompt("sum_up", "Sum!")


def test_ids_come_from_a_file_that_has_some(tmp_path: Path, harmbench: dict[str, Path]) -> None:
    (tmp_path / "plain.csv").write_text("prompt\nx\n")
    with pytest.raises(DataError, match="which has no ids"):
        attacked(Listening(), harmbench["cases"], behaviors=tmp_path / "plain.csv")
