"""An error in the user's own data, judge, prompts or generative model is one sentence with its line in the user's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import robustkd
from robustkd import plugins
from robustkd.contracts import RobustkdError
from robustkd.evaluation.prompts import prepare
from robustkd.plugin_kit import prompt_fixtures
from robustkd.targets.code import function_by_reference
from support.campaigns import external, tiny_campaign
from support.command_line import CommandLine

OWN = """\
import numpy as np
import torch


def load():
    return {}["images"]


class Rows(torch.utils.data.Dataset):
    targets = [0, 1] * 4

    def __len__(self):
        return 8

    def __getitem__(self, row):
        if row == 6:
            raise ValueError("the sixth is not there")
        return torch.zeros(1, 8, 8), self.targets[row]


def rows():
    return Rows()


def unlabelled():
    made = Rows()
    made.targets = None
    return made


def batches():
    for batch in range(3):
        yield np.zeros((2, 1, 8, 8), np.float32), np.array([0, 1, 2][batch:])[5]


def prompts():
    return [].pop()


def judge(requests, outputs):
    return [output["text"] for output in outputs]


def build():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
"""
LINES = {text.strip(): number for number, text in enumerate(OWN.splitlines(), 1)}
LOAD, ROW, UNLABELLED, BATCH, PROMPTS, JUDGE = (
    LINES[text]
    for text in (
        'return {}["images"]',
        'raise ValueError("the sixth is not there")',
        "return torch.zeros(1, 8, 8), self.targets[row]",
        "yield np.zeros((2, 1, 8, 8), np.float32), np.array([0, 1, 2][batch:])[5]",
        "return [].pop()",
        'return [output["text"] for output in outputs]',
    )
)
CAMPAIGN = tiny_campaign("own", external("own.py:build"), data='{name: code, code: "own.py:rows"}')
PROMPTED = """\
version: 1
name: prompted
data: {name: vaults, vaults: 10, test_vaults: 2, validation_vaults: 2, repetitions: 1, test_tasks: 1}
threat: {attempts: 1}
judges: {mine: {kind: code, code: "own.py:judge"}}
defenses: {base: {kind: lm-pretrain, steps: 1, batch_size: 2, width: 16, layers: 1}}
attacks: {direct: {kind: direct}}
checks: none
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "own.py"


@pytest.mark.parametrize(
    ("function", "line"), [("load", LOAD), ("rows", ROW), ("unlabelled", UNLABELLED), ("batches", BATCH), ("prompts", PROMPTS)]
)
@pytest.mark.usefixtures("own")
def test_data_from_a_command(robustkd: CommandLine, function: str, line: int) -> None:
    command = ["attack", "fgsm", "--model", "own.py:build", "--data", "code", "--data-set", f"code=own.py:{function}"]
    said = robustkd(*command, "--device", "cpu")
    assert said.code
    assert f"own.py:{line}: " in said.words


@pytest.mark.parametrize(("text", "line"), [(CAMPAIGN, ROW), pytest.param(PROMPTED, JUDGE, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("own")
def test_a_campaign(robustkd: CommandLine, text: str, line: int) -> None:
    Path("c.yaml").write_text(text)
    said = robustkd("run", "c.yaml", "--no-track", "--workers", "0", "--device", "cpu")
    assert said.code
    assert f"own.py:{line}" in said.words


@pytest.mark.parametrize(("function", "line"), [("rows", ROW), ("unlabelled", UNLABELLED), ("batches", BATCH)])
def test_data_in_python(own: Path, function: str, line: int) -> None:
    data, model = (function_by_reference(f"{own}:{name}")() for name in (function, "build"))
    with pytest.raises(RobustkdError, match=f"own.py:{line}: "):
        robustkd.attack("fgsm", model, data, eps=0.1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_in_python(own: Path, workers: int) -> None:
    data, model = (function_by_reference(f"{own}:{name}")() for name in ("rows", "build"))
    with pytest.raises(RobustkdError, match=f"own.py:{ROW}: .*the sixth is not there"):
        robustkd.evaluate(
            model, torch.utils.data.DataLoader(data, batch_size=2, num_workers=workers), eps=0.1, attacks="fgsm", level="none"
        )


def test_a_function_that_judges(own: Path) -> None:
    judge = plugins.make("judges", {"kind": "code", "code": f"{own}:judge"})
    with pytest.raises(RobustkdError, match=f"own.py:{JUDGE}: string indices must be integers"):
        judge.complied(prompt_fixtures.requests(), ["said"] * 6)


class Judge(prompt_fixtures.Plain):
    def complied(self, requests: Any, outputs: Any) -> np.ndarray:
        raise KeyError("verdict")


class Model(prompt_fixtures.Oracle):
    def respond(self, asked: Any) -> list[Any]:
        raise KeyError("answer")


HERE = Path(__file__).read_text().splitlines()


@pytest.mark.parametrize(
    ("model", "judge", "said"), [(Model, prompt_fixtures.Plain, "answer"), (prompt_fixtures.Oracle, Judge, "verdict")]
)
def test_generative_models_and_judges_of_ones_own_class(model: Any, judge: Any, said: str) -> None:
    line = next(number for number, text in enumerate(HERE, 1) if f'KeyError("{said}")' in text)
    with pytest.raises(RobustkdError, match=f"{Path(__file__).name}:{line}: '{said}'"):
        prepare(model(), prompt_fixtures.requests(), np.arange(6), {"mine": judge()})
