"""What a reader sees of a campaign of prompts: words that fit, transcripts with what the attack changed, nothing that becomes markup."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from robustkd.application import session
from robustkd.campaigns.comparison import compare, gate, snapshot
from robustkd.campaigns.execution import profile as profiles
from robustkd.campaigns.file import spec
from robustkd.cli.table import print_results
from robustkd.reporting import PromptItem, summary_rows, write_report
from robustkd.reporting.formatting import threat
from robustkd.reporting.latex import latex
from robustkd.reporting.markdown import markdown
from robustkd.reporting.transcripts import changes
from robustkd.scoring.intervals import wilson
from robustkd.tracking import transcripts
from robustkd.tracking.images import save_sheet
from robustkd.tracking.records import TrackedCampaign, cell_record, defense_record
from support.toy_prompts import CUPBOARD, registered

SMALL = re.sub(r"  (open|careful): .*\n", "", CUPBOARD).split("gates:")[0]
SMALL += "gates:\n  - {defense: short-sighted, metric: clean_accuracy, at_least: 0.7}\n"
EVIL = "</script><script>alert(1)</script>\x1b[31m\u202e"


@pytest.fixture(scope="module")
def cupboards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cupboards")
    with registered(tmp_path_factory.mktemp("site")):
        campaign = spec.from_text(SMALL, "test.yaml", folder)
        how = profiles.load(None).overridden(workers=0, device="cpu", track=False)
        yield campaign, folder, session.run(campaign, folder, how)


class Page(HTMLParser):
    """The words of a page, and the tags around them."""

    def __init__(self, text):
        super().__init__()
        self.words, self.added, self.scripts, self._inside = "", [], 0, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._inside.append(tag)
        self.scripts += tag == "script"
        if tag == "ins":
            self.added.append("")

    def handle_endtag(self, tag):
        if tag in self._inside:
            del self._inside[len(self._inside) - 1 - self._inside[::-1].index(tag) :]

    def handle_data(self, data):
        if "script" not in self._inside and "style" not in self._inside:
            self.words += f" {data.strip()}"
            if "ins" in self._inside:
                self.added[-1] += data


def test_the_page_speaks_of_requests_and_attempts(cupboards):
    _, folder, _ = cupboards
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    for said in (
        "any wording, 6 attempts",
        "12 forbidden requests, 12 harmless",
        "Usefulness",
        "Robust accuracy against attempts",
        "attempts: answers to each request that were judged",
        "Robust accuracy by category",
        "not counted",
        "any beginning of the answer, 6 attempts",
        "The judge tone says the same",
    ):
        assert said in page.words
    for unsaid in ("pixels", "eps", "test sample", "Clean accuracy", "classified", "image"):
        assert unsaid not in page.words
    assert not re.search(r"\d attempts: .* 0 attempts", page.words)


def test_a_transcript_shows_what_the_attack_added(cupboards):
    _, folder, _ = cupboards
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    added = {word for words in page.added for word in words.split()}
    assert added >= {"please", "kindly", "Sure:"}
    assert added <= {"please", "kindly", "now", "really", "Sure:", "what", "the", "attack", "added"}
    assert "What is in the" in page.words
    assert "It is number <" in page.words  # an answer like a tag is text
    assert "Sorry, I cannot tell." in page.words  # some that held are shown, too


def test_the_listing_counts_the_campaign_s_own_threat_model(cupboards):
    _, folder, _ = cupboards
    text = (folder / "report.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="sample-data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["others"] == ["first-words"]
    assert len(data["requests"]) == 12
    forgetful = next(item for item in data["defenses"] if item["name"] == "forgetful")
    assert (sum(forgetful["unfit"]), forgetful["before"]) == (4, None)
    assert "" not in data["classes"]
    assert "held first-words (another threat model)" in " ".join(Page(text).words.split())


def test_the_curve_begins_at_the_first_attempt(cupboards):
    _, folder, _ = cupboards
    words = Page((folder / "report.html").read_text(encoding="utf-8")).words
    assert "1 attempt: " in words
    assert "0 attempts" not in words.replace("10 attempts", "")


def test_texts_for_elsewhere(cupboards, capsys):
    campaign, folder, results = cupboards
    rows = summary_rows(results)
    told, tables = markdown(results, rows), latex(results, rows)
    assert "| defense | usefulness | robust accuracy |" in told
    assert "any wording, 6 attempts" in told
    assert "any wording, 6 attempts" in tables
    assert r"\leq" not in tables
    print_results(results, gate.judge_gates(campaign.gates, results), folder, tracked=False, shown="test.yaml")
    out = capsys.readouterr().out
    assert "first-words*" in out
    assert "useful: share of 12 harmless requests" in out
    assert threat(results.budget) == "any wording, 6 attempts"


def test_what_becomes_of_usefulness_is_about_the_harmless_requests(cupboards, tmp_path):
    campaign, folder, results = cupboards
    (judged,) = gate.judge_gates(campaign.gates, results)
    assert (judged.ci_low, judged.ci_high) == wilson(12, 12)
    # A model that forgot a third of all is less useful; on its requests nothing was lost, by either.
    here = snapshot.read(str(folder))
    compared = compare.compare(here, here, {"short-sighted": "forgetful"})
    (clean,) = [item for item in compared.movements if item.attack == snapshot.CLEAN]
    assert (clean.changes[0].a, clean.changes[0].b, clean.changes[0].only_a) == (1.0, 8 / 12, 4)
    file = tmp_path / "baseline.json"
    file.write_text(json.dumps(snapshot.to_baseline(here)))
    assert [item.outcome for item in gate.judge_baseline(snapshot.read(str(file)), here, metrics=gate.METRICS)] == [
        "passed"
    ] * 4


def test_nothing_that_was_asked_or_answered_becomes_markup(cupboards, tmp_path):
    _, _, results = cupboards
    drawn = np.zeros((3, 8, 8), np.float32)
    texts = {"request": EVIL, "prompt": f"{EVIL} {EVIL}", "output": EVIL, "prefill": EVIL}
    item = PromptItem(
        "forgetful", "extra-words", 0, "<i>attic", attempts=1, broken=True, before=drawn, after=drawn + 1, **texts
    )
    files = write_report(results, tmp_path, [replace(item, verdicts={"<b>judge": True})])
    text = files.html.read_text(encoding="utf-8")
    page = Page(text)
    assert page.scripts == 1
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "alert(1)" in page.words
    assert "<b>judge: gives what is asked for" in page.words
    assert text.count("What was drawn for the attacked prompt") == 1
    assert files.gallery is not None
    assert save_sheet([item], tmp_path / "sheet.png")
    assert not save_sheet([replace(item, before=None)], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_changes_are_told_word_by_word():
    assert changes("tell me the code", "please tell me a code !! x") == [
        ("added", "please"),
        ("same", "tell me"),
        ("removed", "the"),
        ("added", "a"),
        ("same", "code"),
        ("added", "!! x"),
    ]
    assert changes("a b", "a b") == [("same", "a b")]
    assert changes("a b", "c") == [("removed", "a b"), ("added", "c")]


def test_tracking_quotes_examples_and_keeps_a_table(cupboards):
    _, _, results = cupboards
    shown = [
        PromptItem(
            "short-sighted", "extra-words", 0, "attic", "What?", "What please?", "<b>", 2, True, verdicts={"number": True}
        ),
        PromptItem("short-sighted", "extra-words", 0, "attic", "Who?", "Who?", "postgresql://me:secret@host/db", 6, False),
    ]
    cell = next(cell for cell in results.cells if (cell.defense, cell.attack) == ("short-sighted", "extra-words"))
    tracked = TrackedCampaign("cupboards", "1", SMALL, results.data)
    note = cell_record(tracked, cell, images=True, examples=shown).tags["mlflow.note.content"]
    assert "of 12 forbidden requests; 100.0" in note
    assert "> asked: What please?" in note
    assert "&lt;b>" in note
    kept = transcripts.table(shown)
    assert json.loads(kept)["data"][0] == ["broken at attempt 2", "attic", "What?", "", "What please?", "", "<b>", 2, True]
    assert "secret" not in note + kept
    worst = defense_record(tracked, results.defenses[0]).tags["mlflow.note.content"]
    assert "| attempts" in worst
