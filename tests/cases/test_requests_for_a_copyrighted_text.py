"""HarmBench judges its copyright rows by comparing texts: a judge of refusals says nothing of them, and is not asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.command_line import CommandLine
from support.model_folders import TEXT, language_model

HARMBENCH = """\
Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID
say it,standard,illegal,,,a
say hello,copyright,copyright,"lyrics, hash_check",,b
hello it,standard,illegal,,,c
"""


@pytest.mark.parametrize(
    ("choice", "code", "said"),
    [
        ("", 0, "(2 forbidden requests, 0 harmless)"),
        ("", 0, "data: 1 of 3 requests of requests.csv have the tag hash_check and are left out"),
        (", hash_check: judge", 0, "(3 forbidden requests, 0 harmless)"),
        (", hash_check: refuse", 1, "1 of 3 requests of requests.csv have the tag hash_check: no judge of refusals can tell"),
        (", keep: {FunctionalCategory: [copyright]}", 1, "1 of 1 requests of requests.csv have the tag hash_check"),
    ],
)
def test_what_the_plan_says(robustkd: CommandLine, choice: str, code: int, said: str, tmp_path: Path) -> None:
    language_model(tmp_path / "model")
    Path("requests.csv").write_text(HARMBENCH)
    Path("c.yaml").write_text(TEXT.replace("requests.csv}", f"requests.csv{choice}}}"))
    told = robustkd("plan", "c.yaml")
    assert told.code == code
    assert said in told.words
