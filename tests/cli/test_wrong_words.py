"""What a stranger mistypes: one sentence of whole words, with what was meant."""

from __future__ import annotations

import re

import pytest

from robustkd.cli import main
from support.campaigns import tiny_campaign


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """Calls robustkd in a folder with first.yaml and runs/first, on a terminal of 80 columns: its exit code and standard error."""
    (tmp_path / "runs/first").mkdir(parents=True)
    for file in ("first.yaml", "runs/first/campaign.yaml"):
        (tmp_path / file).write_text(tiny_campaign("first"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*words: str) -> tuple[object, str]:
        monkeypatch.setattr("sys.argv", ["robustkd", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("runn quickstart", "run"),
        ("list atacks", "attacks"),
        ("list attack", "attacks"),
        ("describe pdg", "pgd"),
        ("plan first.yml", "first.yaml"),
        ("run frist", "first"),
        ("report frist", "first"),
        ("view frist", "first"),
        ("ui frist", "first"),
        ("leaderboard frist", "first"),
        ("export frist --out x", "first"),
        ("track frist", "first"),
        ("gate quickstrat", "quickstart"),
        ("plan first.yaml --otu x", "--out"),
        ("export first --out x --format onx", "onnx"),
    ],
)
def test_the_word_that_was_meant_is_told(told, words, meant):
    code, text = told(*words.split())
    assert code == 2
    assert re.search(rf"id you mean '?{meant}'?\?", " ".join(text.split()))  # click before 8.3 has no quotation marks
    assert max(map(len, text.splitlines())) <= 80
    assert "Traceback" not in text


def test_what_can_be_named_is_told_where_nothing_is_near(told):
    code, text = told("plan", "something-else-altogether")
    assert code == 2
    assert " ".join(text.split()).endswith("or its name below runs, or a preset (robustkd list presets)")


def test_a_preset_is_no_plugin(told):
    code, text = told("describe", "quickstart")
    assert code == 2
    assert "it is a preset: robustkd plan quickstart" in " ".join(text.split())


def test_the_leaderboard_is_of_the_folder_runs(told):
    code, text = told("leaderboard")
    assert code == 1
    assert "runs holds no results.json" in text
