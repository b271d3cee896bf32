"""A defense holds against its campaign's gate and undefended row, by one rule; one that is no better than undefended never does."""

from __future__ import annotations

import json
import re
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from robustkd.campaigns.file import spec
from robustkd.contracts import UsageError
from robustkd.reporting.summary import summary_rows
from robustkd.scoring.holds import standings
from robustkd.scoring.intervals import share_interval
from robustkd.scoring.paired import compared
from robustkd.scoring.results import DefenseResult, Results
from robustkd.scoring.summaries import DataSummary, GateSummary, ThreatSummary
from robustkd.viewer.addresses import address
from robustkd.viewer.board import leaderboard_page
from robustkd.viewer.runs import Runs
from robustkd.viewer.site import Site
from support.campaigns import tiny_campaign

CAMPAIGN = tiny_campaign(
    "distilled",
    {
        "plain": "{kind: standard, model: tiny-cnn, epochs: 4, batch_size: 16, optimiser: adam, lr: 0.01}",
        "student": "{kind: kd, teacher: plain, student: tiny-cnn, epochs: 4, batch_size: 16, optimiser: adam, lr: 0.01}",
    },
    {"pgd": "{kind: pgd, steps: 3}"},
    train=300,
    test=60,
    eps=0.02,
    gates="[{defense: student, at_least: 0.05}]",
)


def test_a_student_that_passes_its_gate_and_is_no_better_than_the_plain_network(robustkd):
    Path("c.yaml").write_text(CAMPAIGN)

    out = robustkd("run", "c.yaml", "--workers", "0", "--quiet", "--no-track").out
    assert "gate passed: student" in out
    assert re.search(r"does it hold\?.*(No|It cannot be said): student", out)
    (board,) = json.loads(robustkd("leaderboard", "runs/distilled", "--json").out)
    said = {entry["defense"]: entry["holds"] for entry in board["entries"]}
    assert said["student"] != "yes"
    why = {entry["defense"]: entry["why"] for entry in board["entries"]}["student"]
    assert "plain (undefended)" in why
    page = Path("runs/distilled/report.html").read_text()
    assert why.replace(" %", "\N{NARROW NO-BREAK SPACE}%") in page
    assert why in Path("runs/distilled/report.tex").read_text()
    assert why in Path("runs/distilled/report.md").read_text()
    shown = leaderboard_page(Site(Runs(Path("runs"))), address("leaderboard"))
    assert f'title="{why}"' in shown


def results(standing: dict[str, list[float]], n: int, *, undefended=(), gates=(), verdicts=()) -> Results:
    """Defenses of which these shares of n samples stand, one share a seed; the first samples stand longest, on all of them."""
    rows, held = [], []
    for name, shares in standing.items():
        for seed, share in enumerate(shares):
            stands = np.arange(n) < round(share * n)
            low, high = share_interval(stands)
            verdict = dict(verdicts).get(name, "credible")
            rows.append(
                DefenseResult(
                    name, seed, "standard", "done", "linf", 0.1, n, 1.0, float(stands.mean()), low, high, verdict=verdict
                )
            )
            held.append((name, seed, stands))
    return Results(
        "c",
        ThreatSummary("linf", 0.1),
        DataSummary("digits", n),
        [],
        rows,
        comparisons=compared(held),
        gates=[GateSummary(name, "robust_accuracy", at_least) for name, at_least in gates],
        undefended=list(undefended),
    )


@pytest.mark.parametrize(
    ("share", "n", "more", "expected"),
    [
        # Neither gate nor undefended row: a fifth and nine tenths, and the whole interval counts.
        (0.0, 40, {}, "no"),
        (0.0, 40, {"verdicts": [("mine", "not credible")]}, "no"),
        (0.1, 500, {}, "no"),  # little more than chance on ten classes, as an undefended network keeps
        (0.5, 500, {}, "in part"),
        (0.4, 10, {}, None),  # 16.8 to 68.7 %
        (0.95, 1000, {}, "yes"),
        (0.95, 40, {}, "in part"),  # 83.5 to 98.6 %
        (0.95, 1000, {"verdicts": [("mine", "not credible")]}, None),
        (0.95, 1000, {"verdicts": [("mine", None)]}, "yes"),
        # A gate: passed, failed, inconclusive.
        (0.6, 500, {"gates": [("mine", 0.5)]}, "yes"),
        (0.6, 500, {"gates": [("mine", 0.7)]}, "no"),
        (0.6, 500, {"gates": [("mine", 0.6)]}, "in part"),
        (0.15, 1000, {"gates": [("mine", 0.1)]}, "yes"),  # little, and what was asked for
        (0.6, 500, {"gates": [("mine", 0.5)], "verdicts": [("mine", "not credible")]}, None),
        (0.6, 500, {"gates": [("mine", 0.7)], "verdicts": [("mine", "not credible")]}, "no"),
        # The gate of another defense is what the campaign asks for, but failing it is no failed gate.
        (0.6, 500, {"gates": [("other", 0.5)]}, "yes"),
        (0.6, 500, {"gates": [("other", 0.7)]}, "in part"),
    ],
)
def test_a_defense_alone(share, n, more, expected):
    assert standings(results({"mine": [share]}, n, **more))["mine"].holds == expected


@pytest.mark.parametrize(
    ("plain", "mine", "n", "more", "expected"),
    [
        ([0.5], [0.5], 500, {}, "no"),
        ([0.95], [0.95], 1000, {}, "no"),  # nine tenths stand, and without it as many
        ([0.95], [0.95], 1000, {"gates": [("mine", 0.5)]}, "no"),
        ([0.5], [0.51], 500, {"gates": [("mine", 0.3)]}, None),  # five samples: McNemar's p is 0.06
        ([0.0], [0.05], 40, {}, "no"),  # two samples, and at most 17 %
        ([0.0], [0.15], 500, {}, "in part"),  # few, and surely more than none
        ([0.3], [0.95], 1000, {}, "yes"),
        ([0.3], [0.6], 500, {}, "in part"),
        ([0.3], [0.6], 500, {"gates": [("mine", 0.5)]}, "yes"),
        ([0.6], [0.5], 500, {"verdicts": [("plain", "not credible")]}, None),  # the plain one may stand lower yet
        ([0.3], [0.6], 500, {"verdicts": [("plain", "not credible")]}, "in part"),
        ([0.6], [0.5], 500, {"verdicts": [("mine", "not credible")]}, "no"),
        ([0.3, 0.3], [0.6, 0.3], 500, {}, None),  # better on one seed of two
        ([0.3, 0.3], [0.6, 0.5], 500, {}, "in part"),
    ],
)
def test_beside_an_undefended_row(plain, mine, n, more, expected):
    found = standings(results({"plain": plain, "mine": mine}, n, undefended=["plain"], **more))
    assert found["mine"].holds == expected
    assert found["plain"].holds == ("yes" if plain == [0.95] and not more.get("gates") else found["plain"].holds)


def test_a_defense_must_be_better_than_every_undefended_row_and_such_a_row_holds_only_where_there_is_nothing_to_defend():
    found = standings(results({"small": [0.1], "large": [0.5], "mine": [0.5]}, 500, undefended=["small", "large"]))
    assert [one.holds for one in found.values()] == ["no", "no", "no"]
    assert "large" in found["mine"].why
    (easy,) = standings(results({"plain": [0.99]}, 1000, undefended=["plain"])).values()
    assert easy.holds == "yes"


def test_more_samples_of_the_same_shares_never_take_an_answer_back():
    """What few samples leave open many tell; a yes or a no stays."""
    order = {None: 0, "in part": 1, "yes": 2, "no": 2}
    for plain, mine in ((0.3, 0.6), (0.3, 0.95), (0.5, 0.5), (0.2, 0.1)):
        told = [
            standings(results({"plain": [plain], "mine": [mine]}, n, undefended=["plain"]))["mine"].holds
            for n in (20, 100, 500, 2000)
        ]
        ranks = [order[one] for one in told]
        assert ranks == list(accumulate(ranks, max)), (plain, mine, told)


def test_results_keep_what_was_asked_for_and_files_of_former_releases_have_none():
    made = results({"plain": [0.3], "mine": [0.6]}, 500, undefended=["plain"], gates=[("mine", 0.5)])
    assert Results.from_dict(json.loads(made.to_json())) == made
    former = json.loads(results({"mine": [0.6]}, 500).to_json())
    assert not {"gates", "undefended"} & former.keys()
    assert [row.holds for row in summary_rows(Results.from_dict(former))] == ["in part"]


def test_an_undefended_row_is_named_or_known_by_its_kind(tmp_path):
    (tmp_path / "c.yaml").write_text(CAMPAIGN)
    assert spec.load(tmp_path / "c.yaml").undefended == ("plain",)
    for written, known in (("student", ("student",)), ("[]", ()), ("[plain, student]", ("plain", "student"))):
        (tmp_path / "c.yaml").write_text(f"{CAMPAIGN}undefended: {written}\n")
        assert spec.load(tmp_path / "c.yaml").undefended == known
    (tmp_path / "c.yaml").write_text(f"{CAMPAIGN}undefended: plian\n")
    with pytest.raises(UsageError, match=r"undefended: there is no defense 'plian'[\s\S]*plain"):
        spec.load(tmp_path / "c.yaml")
