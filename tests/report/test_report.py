import json
import re
import subprocess
import sys
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from robustkd.contracts import Share
from robustkd.contracts.check import Finding
from robustkd.reporting import figures, summary_rows, write_report
from robustkd.reporting.confusion import MOST_TABLES
from robustkd.reporting.formatting import epsilon, seconds
from robustkd.reporting.formatting import evidence as told
from robustkd.reporting.gallery import AT_MOST, PER_PAIR, pixels, selected, thumbnail
from robustkd.reporting.grid import grid
from robustkd.reporting.markdown import escape, markdown
from robustkd.reporting.page import page as render
from robustkd.reporting.palette import HEAT, SERIES, SERIES_DARK, contrast, heat, readable_on
from robustkd.reporting.plots import Series, plot, ticks
from robustkd.reporting.summary import curve_of, mean_curve, worst_verdict
from robustkd.reporting.verdict_text import explain, sentence
from robustkd.scoring.intervals import wilson
from robustkd.scoring.results import CurvePoint, Results
from robustkd.scoring.summaries import DataSummary, Environment
from support.example_results import N, broken_campaign, campaign, evidence, large, pictures


class Page(HTMLParser):
    """The page as a list of (tag, attributes), with a check that every tag is closed in order."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def every(self, name: str, **wanted: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if tag == name and all(attrs.get(k) == v for k, v in wanted.items())]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    files = write_report(campaign(), folder / "new", pictures(), evidence(campaign()))
    return files, Page(files.html.read_text(encoding="utf-8"))


def read(folder: Path, results: Results, **kwargs) -> Page:
    return Page(write_report(results, folder, **kwargs).html.read_text(encoding="utf-8"))


# ---- aggregation


def test_seeds_are_combined_by_mean_envelope_and_spread():
    row = {row.defense: row for row in summary_rows(campaign())}["pgd-at"]
    assert row.seeds == (0, 1, 2)
    assert row.robust_accuracy == pytest.approx(0.801)
    assert (row.spread_low, row.spread_high) == pytest.approx((0.791, 0.812))
    assert row.ci_low == wilson(round(0.791 * N), N)[0]
    assert row.ci_high == wilson(round(0.812 * N), N)[1]
    assert (row.strongest_attack, row.verdict, row.status, row.fired_checks) == ("pgd-logits", "credible", "done", ())
    assert row.per_attack["pgd"] == pytest.approx(0.811)
    trained = [item for item in campaign().defenses if item.defense == "pgd-at"]
    pairs = [(item.clean_accuracy, item.robust_accuracy) for item in trained]
    assert row.w_robust == pytest.approx(sum(clean + robust for clean, robust in pairs) / 6)
    assert row.nrr == pytest.approx(sum(2 / (1 / clean + 1 / robust) for clean, robust in pairs) / 3)


def test_one_seed_keeps_its_own_interval_and_equals_go_to_the_first_attack():
    row = summary_rows(campaign((0,)))[0]
    assert (row.ci_low, row.ci_high) == wilson(0, N)
    assert row.strongest_attack == "pgd"


def test_fired_checks_come_severe_first():
    rows = {row.defense: row for row in summary_rows(campaign())}
    assert set(rows["distilled"].fired_checks) == {"loss-disagreement", "logit-scale-invariance", "zero-gradient"}
    results = campaign((0,))
    both = [Finding("a", "info", True), Finding("b", "warning", True), Finding("c", "severe", True)]
    assert summary_rows(replace(results, defenses=[replace(results.defenses[0], checks=both)]))[0].fired_checks == (
        "c",
        "b",
        "a",
    )


@pytest.mark.parametrize(
    ("verdicts", "together"),
    [
        (["credible", "credible"], "credible"),
        (["credible", "suspect"], "suspect"),
        (["suspect", "not credible"], "not credible"),
        (["suspect", None], None),
        (["credible", None], None),
        (["not credible", None], "not credible"),
        ([], None),
    ],
)
def test_the_worst_verdict_wins_and_a_missing_one_hides_all_but_the_worst(verdicts, together):
    assert worst_verdict(verdicts) == together


def test_an_attack_under_another_threat_model_is_no_candidate_for_the_strongest():
    results = campaign((0,))
    other = replace(results.cells[4], attack="cw-l2", norm="l2", eps=0.5, robust_accuracy=0.01)
    trained = replace(results.defenses[1], attacks=[])
    row = summary_rows(replace(results, cells=[*results.cells[4:8], other], defenses=[trained]))[0]
    assert row.per_attack["cw-l2"] == 0.01
    assert row.strongest_attack == "pgd-logits"


def test_a_defense_without_a_result_still_has_a_row():
    rows = summary_rows(broken_campaign())
    assert [row.status for row in rows] == ["failed", "blocked"]
    assert all(row.robust_accuracy is None and row.verdict is None and row.strongest_attack is None for row in rows)
    only_cells = replace(broken_campaign(), defenses=[])
    assert [row.status for row in summary_rows(only_cells)] == ["pending", "pending"]


def test_curves_are_averaged_where_every_seed_has_a_point():
    first = [CurvePoint(0.0, 1.0, 0.9, 1.0), CurvePoint(0.1, 0.4, 0.3, 0.5)]
    second = [CurvePoint(0.1 + 1e-12, 0.6, 0.5, 0.7), CurvePoint(0.2, 0.1, 0.0, 0.2)]
    assert mean_curve([first, second, []]) == [CurvePoint(0.1, 0.5, 0.3, 0.7)]
    assert mean_curve([[], []]) == []


def test_a_curve_starts_at_the_clean_accuracy():
    item = campaign((0,)).defenses[2]
    later = replace(item, curve=item.curve[2:])
    assert curve_of(later)[0] == CurvePoint(0.0, 0.953, *wilson(0.953 * N, N))
    assert curve_of(later)[1:] == later.curve
    assert curve_of(item) == item.curve
    assert curve_of(replace(item, curve=[])) == []


def test_the_grid_says_why_a_number_is_missing():
    (first, second), results = grid(broken_campaign()), campaign()
    assert [(cell.status, cell.reason.split()[0]) for cell in (*first, *second)] == [
        ("failed", "Traceback:"), ("invalid", "NaN"), ("pending", "no"), ("skipped", "needs"),
    ]  # fmt: skip
    dead = [replace(c, status="failed", robust_accuracy=None, error="boom") if c.seed == 1 else c for c in results.cells]
    cell = grid(replace(results, cells=dead))[2][1]
    assert cell.value == pytest.approx((0.81 + 0.801) / 2)
    assert (cell.finished, cell.seeds, cell.reason) == (2, 3, "mean of 2 of 3 seeds: boom")


# ---- words


def test_the_story_of_a_masked_gradient_is_told_from_its_numbers():
    results = campaign()
    row = summary_rows(results)[1]
    told = explain(results, row).paragraph
    for part in (
        "The weakest attack (fgsm) leaves 97.1 % of the test samples standing, the strongest (pgd-logits) 20.4 %",
        "all 4 together leave 20.1 %",
        "the gradient of the cross entropy is masked.",
        "zero-gradient fired (zero share 94.1 %",
        "(on 2 of 3 seeds)",
        "not credible: the true robust accuracy may be far below 20.1 %",
    ):
        assert part in told.replace("\N{NARROW NO-BREAK SPACE}", " "), told
    assert told.index("masked") < told.index("zero-gradient")  # what explains itself leads


def test_a_conclusion_fits_its_number():
    results = campaign((0,))

    def told(**changes):
        changed = replace(results, defenses=[replace(results.defenses[0], **changes)])
        return explain(changed, summary_rows(changed)[0]).conclusion.replace("\N{NARROW NO-BREAK SPACE}", " ")

    assert told() == "7 checks ran and found no reason to doubt the number; 1 did not apply. It stands as an upper bound."
    assert told(checks=[]).startswith("No check ran")
    assert told(verdict="suspect") == "So the evaluation is suspect, though its number cannot fall below 0.0 %."
    assert told(verdict="suspect", robust_accuracy=0.3).endswith("the true robust accuracy may be below 30.0 %.")
    useless, wrong = Finding("over-refusal", "warning", True, doubts="use"), Finding("zero-gradients", "severe", True)
    hint = Finding("prefill-breaks", "info", True)
    assert told(verdict="suspect", robust_accuracy=0.3, checks=[useless, hint]).endswith("may be that of a model of less use.")
    assert told(verdict="suspect", robust_accuracy=0.3, checks=[useless, wrong]).endswith("may be below 30.0 %.")


def test_a_missing_verdict_names_the_missing_cells():
    results = broken_campaign()
    assert "no verdict: cells missing (pgd|x failed, cw invalid)" in explain(results, summary_rows(results)[0]).paragraph


def test_a_finding_without_an_explanation_tells_its_numbers():
    assert sentence(Finding("x", "severe", True)) == "The check x fired."
    assert sentence(Finding("x", "severe", True, {"n_samples": 3, "ok": False})) == "The check x fired (n samples 3, ok no)."
    assert sentence(Finding("x", "severe", True, {"explanation": "pGD is weak "})) == "PGD is weak."


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (True, "yes"),
        (1234567, "1 234 567"),
        (Share(0.5), "50.0 %"),
        (Share(-0.03), "-3.0 %"),
        (0.5, "0.5"),
        (float("nan"), "not a number"),
        (float("inf"), "∞"),
        (np.float32(0.25), "0.25"),
        (np.int64(3), "3"),
        ({"robust": Share(0.25), "eps": 0.5}, "robust 25.0 %, eps 0.5"),
        (list(range(10)), "0, 1, 2, 3, 4, 5, 6, 7, … (10 in all)"),
        ("plain", "plain"),
        ([], "none"),
    ],
)
def test_evidence_is_shown_as_its_type_says(value, text):
    assert told(value).replace("\N{NARROW NO-BREAK SPACE}", " ") == text


def test_small_numbers_read_well():
    assert [epsilon(8 / 255), epsilon(0.1), epsilon(0.0), epsilon(0.2)] == ["8/255", "0.1", "0", "0.2"]
    assert [seconds(s) for s in (0.42, 12.4, 65, 7800)] == ["0.42 s", "12 s", "1 min 05 s", "2 h 10 min"]


# ---- the page


def test_the_report_is_six_files(report):
    files, _ = report
    figures = ["curves.png", "heatmap.png", "gallery.png"]
    assert [path.name for path in files.all] == ["report.html", "report.md", "report.tex", *figures]
    assert sorted(path.name for path in files.html.parent.iterdir()) == sorted(path.name for path in files.all)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files.all[3:])


def test_the_page_loads_nothing(report):
    files, page = report
    assert not page.every("link")
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    (script,) = re.findall(r"<script>(.*?)</script>", files.html.read_text(encoding="utf-8"), re.S)  # ours alone may run
    assert f"script-src 'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'\"" in files.html.read_text(
        encoding="utf-8"
    )
    assert page.every("img")
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.every("img"))
    assert all(use["href"].startswith("#") for use in page.every("use"))
    html = files.html.read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\(", html)
    assert "default-src 'none'" in html


def test_every_link_leads_somewhere(report):
    _, page = report
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    links = [link["href"] for link in page.every("a")]
    assert {href[1:] for href in links if href.startswith("#")} <= set(ids)
    assert all(href.startswith("#") for href in links)
    assert (
        sum(href == "#defense-2" for href in links) == 6
    )  # summary (whether it holds, its verdict), heat map, and once per seed


def test_the_page_is_accessible(report):
    _, page = report
    assert all(image.get("alt") for image in page.every("img"))
    assert all(cell.get("scope") in ("row", "col") for cell in page.every("th"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(svg.get("role") == "img" or svg.get("aria-hidden") == "true" for svg in page.every("svg"))


def test_each_verdict_has_a_word_a_colour_and_a_shape_beside_its_number(report):
    files, page = report
    badges = [attrs["class"].removeprefix("badge ") for attrs in page.every("span") if "badge" in (attrs.get("class") or "")]
    # the summary, three seeds each, and the heading of each defense's evidence
    assert {kind: badges.count(kind) for kind in set(badges)} == {"credible": 10, "not-credible": 5, "suspect": 5}
    html = files.html.read_text(encoding="utf-8")
    rows = re.findall(
        r'<td role="cell" class="num headline".*?</td>\s*<td role="cell" data-label="Verdict">(.*?)</td>', html, re.S
    )
    assert len(rows) == 4
    assert all(re.search(r"<svg.*</svg>number: (credible|suspect|not credible)<", cell) for cell in rows)
    marks = re.findall(r'<li><svg class="swatch.*?</li>', html, re.S)
    assert all('class="mark ' in mark for mark in marks if "seed" not in mark)


def test_the_page_says_what_was_measured(report):
    _, page = report
    for part in (
        "digits quickstart",
        "L∞ ≤ 0.1",
        "300 test samples",
        "9f2c51d0a7e84b33",
        "0, 1, 2",
        "2025-11-22",
        "upper bound",
    ):
        assert part in page.words, part
    assert "the campaign has no black-box attack" in page.words


def test_nothing_in_a_name_or_an_error_becomes_markup(tmp_path):
    page = read(tmp_path, broken_campaign(), gallery=[replace(pictures(each=1)[0], defense="<b>d</b>", after='"><script>')])
    assert len(page.every("script")) == 1
    assert not page.every("em")
    assert [image for image in page.every("img") if not image["src"].startswith("data:")] == []
    assert "<script>alert(1)</script>" in page.words
    assert 'died: <img src=x onerror="alert(2)">' in page.words
    assert "<b>boom</b> & more" in page.words
    assert "Incomplete. 3 of 3 attack cells have no result" in page.words
    assert "no verdict: cells missing" in page.words


def test_a_campaign_of_one_cell_without_curve_gallery_or_attack(tmp_path):
    one = campaign((0,))
    bare = replace(
        one, cells=[replace(one.cells[0], curve=[])], defenses=[replace(one.defenses[0], curve=[], history=[], checks=[])]
    )
    files = write_report(bare, tmp_path)
    assert (files.curves, files.gallery) == (None, None)
    assert "fgsm is the only attack with a result" in Page(files.html.read_text(encoding="utf-8")).words
    assert write_report(replace(bare, cells=[]), tmp_path).heatmap is None
    assert (
        write_report(
            replace(bare, cells=[], defenses=[], data=DataSummary("none", 0), environment=Environment()), tmp_path
        ).curves
        is None
    )


def test_a_figure_that_no_longer_belongs_is_removed(tmp_path):
    assert write_report(campaign((0,)), tmp_path, pictures(each=1)).gallery == tmp_path / "gallery.png"
    write_report(campaign((0,)), tmp_path)
    assert not (tmp_path / "gallery.png").exists()


def test_a_large_campaign_stays_small(tmp_path):
    many = large(10, 20)
    items = pictures([f"defense {i}" for i in range(10)], [f"a{j}" for j in range(20)], each=1, side=224, channels=3)
    files = write_report(many, tmp_path, items, evidence(many, n=1000))
    assert files.html.stat().st_size < 5_000_000
    page = Page(files.html.read_text(encoding="utf-8"))
    assert len(page.every("img")) == 3 * AT_MOST


def test_a_huge_campaign_shows_what_fits():
    huge = large(60, 40)
    html = render(huge, summary_rows(huge), (), evidence(huge))
    assert len(html.encode()) < 5_000_000
    assert html.count('<table class="heat dense confusion">') == MOST_TABLES
    page = Page(re.sub(r'<section id="confusion">.*?</section>', "", html, flags=re.DOTALL))
    cells = [attrs for attrs in page.every("td") if re.fullmatch(r"(worst )?h\d+", attrs.get("class") or "")]
    assert len(cells) == 60 * 40 + 60 + 60 * 10  # heat map, its worst case, classes
    assert sum("title" in attrs for attrs in cells) == 600  # the classes' intervals; of the heat map's none
    for part in (
        "1 000 of 2 400 cells",
        "59 of 1 770 pairs",
        "24 of 40 attacks",
        "Of 60 defenses, the front",
        "holds the first 166 of 300 test samples",
    ):
        assert part in page.words.replace("\N{NARROW NO-BREAK SPACE}", " "), part


def test_results_read_back_from_json_give_the_same_page(tmp_path):
    results = campaign((0, 1))
    again = Results.from_dict(json.loads(json.dumps(results.to_dict())))
    first = write_report(results, tmp_path / "a").html.read_bytes()
    assert write_report(again, tmp_path / "b").html.read_bytes() == first


def test_another_threat_model_is_shown_beside_its_attack(tmp_path):
    one = campaign((0,))
    cells = [replace(cell, norm="l2", eps=0.5) if cell.attack == "cw" else cell for cell in one.cells]
    trained = [replace(item, other_threats={"l2 <= 0.5": 0.31}) for item in one.defenses]
    page = read(tmp_path, replace(one, cells=cells, defenses=trained))
    assert "cw L2 ≤ 0.5" in page.words
    assert "on which this verdict says nothing: l2 <= 0.5: 31.0" in page.words


def test_the_report_needs_no_torch():
    code = "import sys, robustkd.reporting; sys.exit(any(m in sys.modules for m in ('torch', 'matplotlib', 'jinja2')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- Markdown


def test_markdown_tables_are_whole_and_carry_the_verdict():
    results = campaign()
    text = markdown(results, summary_rows(results), ["curves.png"])
    assert "⚠️ number: not credible" in text
    assert "![curves](curves.png)" in text
    evil = broken_campaign()
    evil_text = markdown(evil, summary_rows(evil))
    assert "<script" not in evil_text
    assert "no verdict: cells missing" in evil_text
    for table in re.findall(r"(?:^\|.*\|$\n?)+", text + evil_text, re.M):
        columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().splitlines()}
        assert len(columns) == 1, table


def test_markdown_escapes_what_would_be_markup():
    assert escape("a|b\n<i> & [x](y) *z* `q`") == r"a\|b &lt;i> &amp; \[x\](y) \*z\* \`q\`"


# ---- pictures


def test_the_gallery_shares_its_room_between_pairs():
    many = pictures(each=9)
    chosen = selected(many)
    assert len(chosen) == AT_MOST
    pairs = [(item.defense, item.attack) for item in chosen]
    assert max(pairs.count(pair) for pair in set(pairs)) == 3 < PER_PAIR
    assert pairs == sorted(pairs, key=[*dict.fromkeys(pairs)].index)  # grouped, in the campaign's order
    assert len(selected(many[:9])) == PER_PAIR
    wide = pictures([f"d{i}" for i in range(60)], ("a",), each=2)
    assert len({item.defense for item in selected(wide)}) == AT_MOST


def test_a_perturbation_is_mid_grey_where_nothing_changed():
    clean = np.full((1, 2, 2), 0.5, np.float32)
    moved = clean.copy()
    moved[0, 0, 0] += 0.04
    item = replace(pictures(each=1)[0], clean=clean, adversarial=moved)
    assert item.factor == 10
    assert item.perturbation()[0] == pytest.approx(np.array([[0.9, 0.5], [0.5, 0.5]]), abs=1e-6)
    assert replace(item, adversarial=clean).factor == 1
    assert (item.broken, replace(item, after=item.label).outcome) == (True, "held")
    assert replace(item, before="other").outcome == "misclassified before the attack"


def test_pixels_of_any_image():
    assert pixels(np.zeros((1, 8, 8), np.float32)).shape == (8, 8, 3)
    assert pixels(np.ones((3, 200, 100), np.float32)).shape == (200, 100, 3)
    assert thumbnail(np.ones((3, 200, 100), np.float32)).shape == (67, 34, 3)
    assert pixels(np.full((4, 2, 2), np.nan, np.float32)).max() == 0
    with pytest.raises(ValueError, match=r"\(C, H, W\)"):
        pixels(np.zeros((8, 8), np.float32))


# ---- plots and colours


def test_a_plot_spans_its_area():
    drawn = plot("t", [Series("a", [0, 0.1, 0.2], [1.0, 0.5, 0.0], [0.9, 0.4, 0.0], [1.0, 0.6, 0.1]), Series("b", [], [])], "x")
    assert [line.path for line in drawn.lines] == ["M0 0L50 50L100 100"]
    assert drawn.lines[0].band.endswith("Z")
    assert [tick.text for tick in drawn.y_ticks] == ["0\u202f%", "25\u202f%", "50\u202f%", "75\u202f%", "100\u202f%"]
    assert plot("t", [Series("b", [], [])], "x") is None


def test_a_plot_survives_one_point_and_numbers_that_are_none():
    assert plot("t", [Series("a", [0.1], [0.5])], "x").lines[0].dots[0].x == 50
    drawn = plot("t", [Series("a", [0, 1, 2], [1.0, float("nan"), 3.0])], "x", shares=False)
    assert drawn.lines[0].path == "M0 100L100 0"
    assert plot("t", [Series("a", [0, 1], [float("nan")] * 2)], "x", shares=False).lines[0].path == ""


def test_a_series_keeps_its_colour_when_another_has_no_data():
    drawn = plot("t", [Series("none", [], []), Series("b", [0, 1], [0, 1])], "x")
    assert drawn.lines[0].colour == 1
    styles = plot("t", [Series(str(i), [0, 1], [0, 1]) for i in range(28)], "x").lines
    assert len({(line.colour, line.dash) for line in styles}) == 28


@pytest.mark.parametrize(("low", "high", "expected"), [(0, 0.12, [0, 0.025, 0.05, 0.075, 0.1]), (3, 17, [5, 10, 15])])
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high, 6 if high < 1 else 4) == expected


def test_colours_can_be_read():
    shades = [heat(k / 100) for k in range(101)]
    assert (shades[0], shades[100]) == (HEAT[0][1], HEAT[-1][1])
    assert all(contrast(readable_on(shade), shade) >= 4.5 for shade in shades)
    on_white = [contrast(shade, "#ffffff") for shade in shades]
    assert on_white == sorted(on_white, reverse=True)  # lightness rises all the way: it reads in grey too
    assert all(contrast(colour, "#ffffff") >= 3 for colour in SERIES)
    assert all(contrast(colour, "#12161b") >= 4.5 for colour in SERIES_DARK)


def test_the_page_has_contrast_by_day_and_by_night(report):
    css = re.search(r"<style>(.*?)</style>", report[0].html.read_text(encoding="utf-8"), re.S)[1]
    pairs = dict(re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}, #[0-9a-f]{6})\)", css))
    for colour in ({name: both.split(", ")[k] for name, both in pairs.items()} for k in (0, 1)):
        for text in ("ink", "muted", "accent", "good", "warn", "bad"):
            assert contrast(colour[text], colour["paper"]) >= 4.5, text
            assert contrast(colour[text], colour["raised"]) >= 4.5, text
        for mood in ("good", "warn", "bad"):
            assert contrast(colour[mood], colour[f"{mood}-wash"]) >= 4.5, mood
        assert contrast(colour["edge"], colour["paper"]) >= 3  # of a control


def test_a_large_heat_map_is_colour_alone(tmp_path):
    from PIL import Image

    for defenses, inches in ((10, 0.86), (30, 0.16)):
        results = large(defenses, 20)
        assert figures.heatmap(results, summary_rows(results), tmp_path / "map.png")
        assert Image.open(tmp_path / "map.png").width == pytest.approx(160 * (2.6 + 21 * inches), abs=1)
