"""What commands print on a terminal of 80 columns: lines that fit, no word in pieces, the verdict last, each error once."""

from __future__ import annotations

import io
import re
from itertools import pairwise

import pytest
from click.testing import CliRunner

import robustkd
from robustkd.cli import cli, main
from support.campaigns import tiny_campaign
from support.tracked_campaign import cell, defended, failed, results


def run(*words: str, columns: int | None = 80):
    return CliRunner(env={"COLUMNS": None if columns is None else str(columns)}).invoke(
        cli, list(words), catch_exceptions=False
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = tmp_path_factory.mktemp("narrow") / "runs"
    attacks = {
        name: f"{{kind: pgd, steps: {steps}}}"
        for steps, name in enumerate(("projected-one", "projected-two", "three", "four"), 1)
    }
    robustkd.run(tiny_campaign("narrow", attacks=attacks), runs / "narrow", workers=0, device="cpu", track=False)
    return runs


@pytest.mark.parametrize(
    "words", [("list", "attacks"), ("list", "presets"), ("init",), ("describe", "pgd"), ("describe", "mtard")], ids=" ".join
)
def test_lines_fit_and_words_are_whole(words):
    # What is to be copied into a campaign file is left as it is.
    narrow, wide = (run(*words, columns=width).output.partition("in a campaign")[0] for width in (80, None))
    assert max(map(len, narrow.splitlines())) <= 80
    assert set(narrow.split()) == set(wide.split())
    assert max(map(len, wide.splitlines())) > 80


def test_sentences_of_a_description_fill_their_lines():
    """Where the source is wider than the terminal, no line ends in the midst of a sentence with room for the next word."""
    lines = run("describe", "pgd").output.partition("\n  modality")[0].splitlines()
    prose = [line for line in lines if line.startswith("  ") and not line.startswith("   ")]
    begins = next(number for number, line in enumerate(prose) if "Good for everything" in line)
    several = prose[begins : next(number for number, line in enumerate(prose) if "Source:" in line)]
    assert all(len(line) + 1 + len(after.split()[0]) > 80 for line, after in pairwise(several))


def test_what_a_command_does_is_told_to_the_end():
    out = run("store", "--help").output.partition("Commands:")[2]
    assert "..." not in out
    assert "which of the campaigns still needs it." in " ".join(out.split())


def test_the_leaderboard_has_every_number_and_attack(runs):
    out = run("leaderboard", str(runs)).output
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    item = robustkd.load(runs / "narrow").defenses[0]
    assert f"{item.robust_accuracy:.1%} [{item.ci_low:.1%}, {item.ci_high:.1%}]" in out
    assert "four, projected-one, projected-two, three" in out
    assert "does it hold? No: plain (undefended)." in out  # that it does, or not, has no room in the table
    assert "no verdict" in out


def test_attacks_are_listed_by_what_they_attack():
    lines = run("list", "attacks").output.splitlines()
    place = {
        name: next(at for at, line in enumerate(lines) if re.match(rf"  {name}\b", line)) for name in ("pgd", "square", "gcg")
    }
    titles = {
        name: next(line.strip() for line in reversed(lines[:at]) if line.startswith(" attacks:")) for name, at in place.items()
    }
    assert titles["pgd"] == "attacks: images, gradient"
    assert titles["square"] == "attacks: images, black box"
    assert titles["gcg"].startswith("attacks: language models")


def test_a_plugin_is_shown_in_its_family():
    out = run("describe", "pgd").output
    family = out.partition("family")[2].partition("parameters")[0]
    assert "└─ gradient" in family
    assert "[pgd]" in family
    assert "apgd-ce" in family
    assert "square" not in family


def test_one_reason_is_told_once(capsys):
    from robustkd.cli.table import _print_failures

    error = "out of memory: 3 of 4 GB"
    _print_failures(results(*(failed("mtard", name, 0, error) for name in ("pgd", "cw", "fab")), cell()))
    told = capsys.readouterr().err
    assert told.count(error) == 1
    for name in ("pgd", "cw", "fab"):
        assert f"mtard × {name}, seed 0" in told


def test_progress_has_loss_total_and_time_left_beside_a_long_title():
    from rich.console import Console

    from robustkd.cli.progress import _Live

    live = _Live(io.StringIO())
    screen = Console(file=io.StringIO(), width=80, force_terminal=True)
    live._bar.update(live._task, total=120, completed=7)

    class Long:
        id, title = "1", "a-defense-with-a-rather-long-name-of-its-own · seed 0"

    live.progressed(Long(), 3, {"lr": 0.1, "train_loss": 1.2345})
    screen.print(live._bar.get_renderable())
    shown = re.sub(r"\x1b\[[0-9;]*m", "", screen.file.getvalue())
    assert "7/120" in shown
    assert "-:--:--" in shown
    assert "epoch 4, loss 1.23" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_an_audit_ends_with_its_verdict(capsys, monkeypatch):
    from robustkd.cli.audit import _print

    monkeypatch.setenv("COLUMNS", "80")

    class Report:
        findings = tuple(defended().checks)
        standing = (True,)

        def __str__(self) -> str:
            return "75.0 % robust, not credible"

    _print(Report())
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].endswith("not credible")
    assert "zero-gradient (severe): fired" in lines[0]


def test_a_plan_and_a_run_are_told_in_whole_words(tmp_path, monkeypatch, capsys):
    from robustkd.cli.table import print_results

    monkeypatch.chdir(tmp_path)
    attacks = {f"projected-gradient-descent-{number}": f"{{kind: pgd, steps: {number}}}" for number in range(1, 7)}
    text = tiny_campaign("wordy", attacks=attacks | {"far": "{kind: apgd-t, steps: 2, targets: 20}"}, train=100, test=10)
    (tmp_path / "wordy.yaml").write_text(text)
    why = "a reason that goes on and on for longer than any line of a terminal has room for"
    monkeypatch.setenv("COLUMNS", "80")
    print_results(
        results(cell(), failed("mtard", "cw", 0, why), defenses=(defended(),)), [], tmp_path, tracked=False, shown="x"
    )
    printed = capsys.readouterr()
    assert why in " ".join(printed.err.split())
    for told in (run("plan", "wordy.yaml").output, printed.out, printed.err):
        assert max(map(len, told.splitlines())) <= 80, told
    wide = run("plan", "wordy.yaml", columns=None).output
    assert max(map(len, wide.splitlines())) > 80
    assert set(wide.split()) == set(run("plan", "wordy.yaml").output.split())


def test_the_doctor_s_findings_are_told_in_whole_words(monkeypatch):
    from robustkd.integrations import doctor

    detail = "a detail that goes on and on for longer than any line of a terminal has room for"
    monkeypatch.setattr(
        doctor, "examine", lambda: [doctor.Finding("torch", True, detail), doctor.Finding("mlflow", False, detail)]
    )
    out = run("doctor").output
    assert max(map(len, out.splitlines())) <= 80
    assert " ".join(out.split()).count(detail) == 2
    assert out.startswith("ok    torch: a detail")


def test_an_error_is_told_in_whole_words(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.argv", ["robustkd", "view", "a-folder-that-is-not-there-and-whose-name-is-long"])
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr().err
    assert max(map(len, told.splitlines())) <= 80
    assert told.startswith("error: there is no folder a-folder-that-is-not-there-and-whose-name-is-long")
    assert "\n  fix: name the folder that campaigns were run into" in told
