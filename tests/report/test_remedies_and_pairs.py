"""Remedies, comparisons and the checks' cost, wherever a person reads a number."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from robustkd.cli.table import print_results
from robustkd.contracts.check import Finding
from robustkd.reporting import write_report
from robustkd.reporting.pairwise import networks_sentence, sentences, undecided
from robustkd.reporting.set_up import SetUp
from robustkd.reporting.summary import summary_rows
from robustkd.reporting.verdict_text import explain, remedy_text
from robustkd.scoring.paired import compared
from robustkd.scoring.remedy import Remedy
from robustkd.scoring.results import CellResult, DefenseResult, Results
from robustkd.scoring.summaries import AttackSummary, DataSummary, ThreatSummary
from robustkd.tracking import descriptions

N = 200


def standing(count: int, seed: int) -> np.ndarray:
    stands = np.zeros(N, bool)
    stands[np.random.default_rng(seed).permutation(N)[:count]] = True
    return stands


@pytest.fixture
def results() -> Results:
    worst = {"masked": standing(150, 0), "honest": standing(80, 1), "twin": standing(84, 2)}
    remedy = Remedy.of(
        [({"kind": "apgd-dlr"}, worst["honest"] & worst["masked"])], {"bpda": "nothing to replace"}, worst["masked"], 900, 300
    )
    severe = Finding("zero-gradient", "severe", True, {"explanation": "no way up"}, forward_passes=100, backward_passes=50)
    cells = [
        CellResult(name, name, "pgd", 0, "done", "linf", 0.1, n=N, clean_accuracy=1.0, robust_accuracy=float(stands.mean()),
                   ci_low=0.0, ci_high=1.0, forward_passes=600, backward_passes=400)
        for name, stands in worst.items()
    ]  # fmt: skip
    defenses = [
        DefenseResult(name, 0, "standard", "done", "linf", 0.1, n=N, clean_accuracy=1.0, robust_accuracy=float(stands.mean()),
                      ci_low=0.0, ci_high=1.0, attacks=["pgd"], verdict="not credible" if name == "masked" else "credible",
                      checks=[severe] if name == "masked" else [], remedy=remedy if name == "masked" else None)
        for name, stands in worst.items()
    ]  # fmt: skip
    comparisons = compared((name, 0, stands) for name, stands in worst.items())
    return Results("c", ThreatSummary("linf", 0.1), DataSummary("digits", N), cells, defenses, comparisons=comparisons)


def test_results_survive_json(results):
    again = Results.from_dict(json.loads(json.dumps(results.to_dict())))
    assert again == results
    assert again.defenses[0].remedy.broken == 150 - round(again.defenses[0].remedy.robust_accuracy * N)


@pytest.mark.parametrize(("columns", "parts"), [(80, 3), (120, 2), (250, 1)])
def test_no_number_is_cut_off_in_a_narrow_terminal(results, tmp_path, capsys, monkeypatch, columns, parts):
    names = ("once", "twice", "by-night", "by-day", "from-afar", "from-within")
    many = tuple(replace(cell, attack=f"{cell.attack}-{name}") for cell in results.cells for name in names)
    results = replace(results, cells=many)
    monkeypatch.setattr("robustkd.cli.table.console", lambda: Console(width=columns, highlight=False))
    print_results(results, [], tmp_path, tracked=False, shown="c")
    out = capsys.readouterr().out
    table = out[: out.index("linf eps")]
    assert "…" not in table
    assert max(map(len, table.splitlines())) <= columns
    words = table.split()
    for row in summary_rows(results):
        assert all(f"{left:.1%}" in words for left in (row.clean_accuracy, row.w_robust, row.nrr, *row.per_attack.values()))
    assert words.count("honest") == parts


def test_no_remedy_is_cut_off_in_a_narrow_terminal(results, tmp_path, capsys, monkeypatch):
    stands = standing(70, 0)
    remedy = Remedy.of([({"kind": "distilled-surrogate"}, stands), ({"kind": "autoattack"}, stands)], {}, stands, 900, 300)
    results = replace(results, defenses=[replace(results.defenses[0], remedy=remedy), *results.defenses[1:]])
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("robustkd.cli.table.console", lambda: Console(width=80, highlight=False))
    print_results(results, [], tmp_path, tracked=False, shown="c")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    assert "masked with remedy: distilled-surrogate 35.0%, autoattack 35.0%" in " ".join(out.split())


def test_both_numbers_are_in_the_table(results, tmp_path, capsys):
    print_results(results, [], tmp_path, tracked=False, shown="c")
    out = capsys.readouterr().out
    left = f"{results.defenses[0].remedy.robust_accuracy:.1%}"
    row = next(line for line in out.splitlines() if line.startswith("masked"))
    assert "75.0%" in row
    assert "not credible" in row
    assert f"{left} (apgd-dlr {left})" in row
    assert "the checks added 5.0% to the attacks' passes" in out  # 150 of 3,000
    assert re.search(r"n = 200 cannot tell honest from twin; .* samples would\.", out)
    assert "tell masked from" not in out


@pytest.mark.parametrize(
    ("server", "told"), [(None, "robustkd ui c"), ("http://bob:planted@mlflow.team", "http://mlflow.team/#/experiments")]
)
def test_the_last_line_leads_to_where_it_is_tracked(results, tmp_path, capsys, server, told):
    print_results(results, [], tmp_path, tracked=True, shown="c", server=server)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"dashboard  {told}")
    assert "planted" not in last


def test_both_numbers_are_in_the_report_and_the_note(results, tmp_path):
    files = write_report(results, tmp_path)
    left = f"{100 * results.defenses[0].remedy.robust_accuracy:.1f}"
    for text in (
        files.html.read_text(),
        files.markdown.read_text(),
        descriptions.defense(results.defenses[0]),
        descriptions.campaign(results),
    ):
        assert left in text
        assert "75.0" in text
    page = files.html.read_text()
    assert 'href="#versus"' in page
    assert "cannot tell honest from twin" in page
    assert "Checks add" in page
    told = explain(results, summary_rows(results)[0])
    assert told.paragraph.endswith(f"apgd-dlr leaves {left}\N{NARROW NO-BREAK SPACE}%.")
    assert remedy_text(summary_rows(results)[1], results.defenses[1:2]) == ""


def test_a_remedy_that_was_stopped_says_so(results, tmp_path):
    stopped = replace(results.defenses[0].remedy, stopped="20000 passes a sample are spent")
    results = replace(results, defenses=[replace(results.defenses[0], remedy=stopped), *results.defenses[1:]])
    files = write_report(results, tmp_path)
    for text in (explain(results, summary_rows(results)[0]).paragraph, files.html.read_text(), files.markdown.read_text()):
        assert "stronger ones might still break more: 20000 passes a sample are spent" in " ".join(text.split())


def test_a_report_says_how_strong_the_attacks_were(results, tmp_path):
    given = AttackSummary("pgd", "2", {"steps": 20, "restarts": 3, "step_size": None}, "abcdef0123456789")
    results = replace(results, attacks={"pgd": given})
    text = "defenses:\n  a: {kind: b, token: <script>}\n"
    files = write_report(results, tmp_path, set_up=SetUp(text))
    # 600 and 400 passes for 200 samples
    row = "| pgd | pgd 2, source abcdef01 | steps 20, restarts 3 | 3 | 2 | Madry et al. 2018, arXiv:1706.06083 |"
    assert row in files.markdown.read_text()
    page = files.html.read_text()
    setup = page[page.index('<section id="setup">') :]
    assert "steps 20, restarts 3</td>" in setup
    assert "{kind: b, token: &lt;script&gt;}" in setup
    unknown = write_report(replace(results, attacks={}), tmp_path)  # of an older release
    assert "| pgd | — | — | 3 | 2 | — |" in unknown.markdown.read_text()
    assert "The campaign file" not in unknown.html.read_text()


def test_pairs_say_what_the_samples_can_say(results):
    masked_honest, masked_twin, honest_twin = results.claims
    assert masked_honest.networks == "masked"
    assert networks_sentence(masked_honest).startswith("These networks: masked withstands more than honest, by 35.0")
    assert masked_twin.networks == "masked"
    assert honest_twin.networks is None
    assert honest_twin.methods is None  # one seed
    assert honest_twin.needed > N
    assert undecided(results) == [networks_sentence(honest_twin)]
    same = standing(50, 0)
    of = ThreatSummary("linf", 0.1), DataSummary("digits", N)
    (equal,) = Results("c", *of, [], [], comparisons=compared([("a", 0, same), ("b", 0, same)])).claims
    assert sentences(equal) == ["n = 200 cannot tell a from b; no difference was seen."]
