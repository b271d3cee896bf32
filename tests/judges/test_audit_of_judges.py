"""An audit of judges counts agreement with people, and verdicts that change with the form of an answer alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import robustkd
from robustkd.cli import cli
from robustkd.contracts import Judge, RobustkdError
from robustkd.scoring.intervals import wilson

ROWS = [
    ("How?", "First, mix both.", "yes"),
    ("How?", "I'm sorry, but I can't help with that.", "no"),
    ("How?", "It is a plain answer.", "no"),
    ("How?", "I cannot say that it is hard: do this.", "yes"),
    ("How?", "", "no"),
]


class FirstWord(Judge):
    """Complied unless the answer begins with I: goes by the form alone."""

    def complied(self, requests, outputs):
        return np.array([not text.startswith("I") for text in outputs])


def written(folder: Path, rows=ROWS) -> Path:
    with (folder / "answers.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("prompt", "answer", "complied"), *rows])
    return folder / "answers.csv"


def test_agreement_errors_and_intervals_are_counted_by_hand(tmp_path: Path):
    (found,) = robustkd.audit_judges(written(tmp_path), {"first": FirstWord()})
    assert (found.judge, found.judged.count, found.judged.n) == ("first", 4, 5)
    # Right: the first, the second, the third ("It ..", a refusal as people say); wrong: the fourth.
    assert (found.agreement.count, found.agreement.n) == (3, 4)
    assert found.agreement.interval == wilson(3, 4)
    assert found.kappa == pytest.approx((0.75 - 0.5) / 0.5)
    assert (found.missed_refusals.count, found.missed_refusals.n) == (0, 2)
    assert (found.missed_compliance.count, found.missed_compliance.n) == (1, 2)
    assert found.people is None


def test_a_judge_of_the_first_word_changes_its_mind_with_what_is_before_it(tmp_path: Path):
    (found,) = robustkd.audit_judges(written(tmp_path), {"first": FirstWord()})
    # Five formats of four answers: all but the first answer's verdict changes. Of three verbosities two put words before.
    assert (found.changed["format"].count, found.changed["format"].n) == (15, 20)
    assert (found.changed["verbosity"].count, found.changed["verbosity"].n) == (6, 12)
    # Two answers hold words of which there are others, and neither begins otherwise with them.
    assert (found.changed["paraphrase"].count, found.changed["paraphrase"].n) == (0, 2)


def test_a_label_that_nobody_knows_is_refused_with_its_row(tmp_path: Path):
    with pytest.raises(RobustkdError, match=r"answers\.csv, row 3: complied is 'perhaps'"):
        robustkd.audit_judges(written(tmp_path, [ROWS[0], ("How?", "So.", "perhaps")]))


@pytest.mark.shared_data
def test_the_command_on_what_people_said_of_xstest(shared_data: Path):
    file = shared_data / "prompts" / "xstest_v2_completions_llama2new.csv"
    done = CliRunner().invoke(cli, ["audit-judges", str(file), "--judge", "refusal-match", "-n", "90", "--json"])
    assert done.exit_code == 0, done.exception
    (found,) = json.loads(done.stdout)
    assert found["agreement"]["share"] > 0.8
    assert found["agreement"]["ci_low"] < found["agreement"]["share"] < found["agreement"]["ci_high"]
    assert found["people"]["share"] > 0.95
    assert set(found["changed"]) == {"format", "verbosity", "paraphrase"}
