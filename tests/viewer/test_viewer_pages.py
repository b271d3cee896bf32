"""What a reader finds in the viewer, asked through HTTP: leaderboard, campaign, samples, one sample, two defenses."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from viewer.conftest import rewritten, served

import robustkd
from robustkd.campaigns.store import samples
from robustkd.campaigns.store.store import Store
from robustkd.data import load_splits
from robustkd.data.splits import SplitParams
from robustkd.reporting.formatting import percent
from robustkd.reporting.gallery import pixels


def outcome(folder, defense, attack):
    cell = next(cell for cell in robustkd.load(folder).cells if (cell.defense, cell.attack, cell.seed) == (defense, attack, 0))
    return samples.read(Store(folder).get(cell.cell_id)).outcome, cell.cell_id


def shown(answer):
    return np.asarray(Image.open(io.BytesIO(answer.body)).convert("RGB"))


def rows(page):
    """The numbers of the samples that a list leads to."""
    return [link for link in page.links if link.startswith("/sample?")]


def test_the_leaderboard_tells_two_campaigns_of_one_name_apart_and_ties_share_a_rank(runs):
    shutil.copytree(runs / "pictures", runs / "again")
    with served(runs) as get:
        page = get("/").page
        assert {"pictures (pictures)", "pictures (again)", "cupboards"} <= set(page.links.values())
        plain = robustkd.load(runs / "pictures").defenses[0]
        assert page.words.count(" ".join(percent(plain.clean_accuracy).split())) >= 2
        best = max(robustkd.load(runs / "pictures").defenses, key=lambda item: item.robust_accuracy)
        first = page.words.split("95 % interval")[1]
        assert first.lstrip().startswith("1 " if best.verdict in ("credible", "suspect") else "—"), first[:80]


def test_equal_defenses_share_a_rank():
    from pathlib import Path

    from robustkd.reporting.leaderboard import boards
    from support.tracked_campaign import defended, results

    numbers = {"a": 0.5, "b": 0.7, "c": 0.7, "d": 0.4}
    found = results(
        defenses=tuple(defended(name, robust_accuracy=value, verdict="credible") for name, value in numbers.items())
    )
    (board,) = boards({Path("x"): found})
    assert [(entry.defense, entry.rank) for entry in board.entries] == [("b", 1), ("c", 1), ("a", 3), ("d", 4)]
    (board,) = boards({Path("runs/x"): found, Path("old/x"): found, Path("runs/y"): found})
    assert {entry.campaign for entry in board.entries} == {"quick (runs/x)", "quick (old/x)", "quick (y)"}


def test_search_and_sort_are_in_the_address(get):
    page = get("leaderboard", q="pictures robust").page
    assert "robust" in page.links.values()
    assert "short-sighted" not in page.links.values()
    assert "Nothing is found" in get("leaderboard", q="nowhere").page.words
    page = get("leaderboard", sort="defense", order="desc", q="pictures").page
    names = [text for link, text in page.links.items() if link.startswith("/samples?")]
    assert names == ["robust", "plain"]
    again = next(link for link, text in page.links.items() if text.startswith("Defense"))
    assert "order=asc" in again
    assert "q=pictures" in again


def test_a_campaign_leads_to_its_samples_and_its_report(get):
    page = get("campaign", run="pictures").page
    assert "L∞ ≤ 0.1" in page.words
    link = next(link for link in page.links if "by=fgsm" in link and "plain" in link)
    assert get(link).status == 200
    report = get(next(link for link, text in page.links.items() if text == "Report"))
    assert "Does this defense hold?" in report.text
    assert "sandbox" in report.headers["content-security-policy"]


@pytest.mark.parametrize("by", ["", "fgsm", "far"])
def test_the_list_holds_what_the_store_says(get, finished, by):
    def broken(attack):
        return outcome(finished / "pictures", "plain", attack)[0].success

    expected = broken(by) if by else broken("fgsm") | broken("pgd") | broken("far")
    found = get("samples", run="pictures", defense="plain", seed=0, show="broken", by=by).page
    assert len(rows(found)) == expected.sum()
    right = outcome(finished / "pictures", "plain", "fgsm")[0].eligible
    wrong = get("samples", run="pictures", defense="plain", seed=0, show="unfit").page
    assert len(rows(wrong)) == (~right).sum()
    standing = get("samples", run="pictures", defense="plain", seed=0, show="standing", by=by).page
    assert len(rows(standing)) == (right & ~expected).sum()


def test_one_walks_through_the_broken_ones(get, finished):
    expected = outcome(finished / "pictures", "plain", "pgd")[0]
    page = get("samples", run="pictures", defense="plain", seed=0, show="broken", by="pgd").page
    address, seen = page.rel["next"], []
    while address:
        page = get(address).page
        seen.append(int(page.words.split("#")[1].split()[0]))
        address = page.rel.get("next")
    assert seen == expected.index[expected.success].tolist()
    assert "prev" in page.rel or len(seen) == 1
    assert get(page.rel["up"]).status == 200


def test_a_sample_shows_the_pictures_that_the_store_kept(get, finished):
    found, cell = outcome(finished / "pictures", "plain", "fgsm")
    row = int(np.flatnonzero(found.success)[0])
    page = get("sample", run="pictures", defense="plain", seed=0, n=row).page
    assert "Logits are those that the attack was judged by" in page.words
    assert f"{found.before[row]} → {found.after[row]}" in page.words
    ours = [address for address in page.pictures if cell in address]
    clean, change, adversarial = (
        shown(get(next(one for one in page.pictures if f"which={which}" in one and (which == "clean" or cell in one))))
        for which in ("clean", "change", "adversarial")
    )
    assert len(ours) >= 2
    kept = samples.perturbed(Store(finished / "pictures").get(cell))[row]
    data = load_splits("digits", {}, SplitParams(train=300, test=20)).test.select(np.array([row])).unit()[0]
    side = clean.shape[0] // data.shape[1]
    assert (clean[::side, ::side] == pixels(data)).all()
    assert (adversarial[::side, ::side] == pixels(kept)).all()
    still = np.abs(kept - data).max(0) < 1e-6
    assert (change[::side, ::side][still] == 128).all()
    assert (change[::side, ::side][~still] != 128).all()


def test_a_change_beyond_the_budget_is_called_so(get, finished):
    found, _ = outcome(finished / "pictures", "robust", "far")
    beyond = np.flatnonzero(found.eligible & ~found.success & (found.after != found.label) & np.isfinite(found.distance))
    if not len(beyond):
        pytest.skip("all that was found is within the budget")
    assert "outside the budget L∞ ≤ 0.1" in get("sample", run="pictures", defense="robust", seed=0, n=beyond[0]).page.words


def test_a_conversation_is_behind_a_click_with_what_the_attack_changed_and_each_judge(get):
    answer = get("sample", run="cupboards", defense="short-sighted", seed=0, n=1)
    page = answer.page
    assert "number (decides): gives what is asked for" in page.words
    assert "tone:" in page.words
    assert "<ins>please kindly</ins>" in answer.text
    before, _, inside = answer.text.partition('<details class="harmful">')
    assert "What is in the" not in before
    assert "What is in the" in inside
    assert page.tags.count("details") == 4  # the request, and each of three attacks


def test_answers_on_which_the_judges_disagree_are_found(runs):
    said = {}
    for place in (runs / "cupboards").glob("cells/*/*/transcripts.jsonl"):
        lines = [json.loads(line) for line in place.read_text().split("\n") if line]
        note = json.loads((place.parent / "meta.json").read_text())
        if note["defense"] == "short-sighted" and note["attack"] == "extra-words":
            for row in (2, 5):
                lines[row]["verdicts"]["tone"] = not lines[row]["verdicts"]["number"]
            rewritten(place.parent, "transcripts.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
            place = place.parent / "transcripts.jsonl"
        for row, line in enumerate(lines):
            if note["defense"] == "short-sighted" and len(set(line["verdicts"].values())) > 1:
                said.setdefault(note["attack"], set()).add(row)
    assert said["extra-words"] >= {2, 5}
    with served(runs) as get:
        of = {"run": "cupboards", "defense": "short-sighted", "seed": 0, "show": "disputed"}
        page = get("samples", **of).page
        assert f"judges disagree {len(set().union(*said.values()))}" in page.words
        assert len(rows(get("samples", by="extra-words", **of).page)) == len(said["extra-words"])


def test_drawings_are_side_by_side(get, finished):
    found, cell = outcome(finished / "squares", "unlearnt", "extra-words")
    row = int(np.flatnonzero(found.success)[0])
    page = get("sample", run="squares", defense="unlearnt", seed=0, n=row).page
    before, after = (shown(get(address)) for address in page.pictures)
    entry = Store(finished / "squares").get(cell)
    for picture, which in ((before, "clean"), (after, "adversarial")):
        kept = pixels(samples.perturbed(entry, which)[row])
        side = picture.shape[0] // kept.shape[0]
        assert (picture[::side, ::side] == kept).all()


def test_two_defenses_side_by_side(get, finished):
    holds = {}
    for name in ("plain", "robust"):
        results = [outcome(finished / "pictures", name, attack)[0] for attack in ("fgsm", "pgd", "far")]
        holds[name] = np.all([one.standing for one in results], axis=0)
    choice = get("compare", a="pictures/0/plain").page
    address = next(link for link, text in choice.links.items() if text == "robust")
    page = get(address).page
    only = (holds["robust"] & ~holds["plain"]).sum()
    assert f"neither holds {(~holds['robust'] & ~holds['plain']).sum()}" in page.words or holds["robust"].all()
    if only:
        assert f"only robust holds {only}" in page.words
    one = next(link for link in page.links if link.startswith("/compare?") and "n=" in link)
    assert get(one).page.words.count("under fgsm") == 2
    other = get("compare", a="pictures/0/plain", b="cupboards/0/short-sighted")
    assert other.status == 404
    assert "other samples" in other.text


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/campaign?run=nowhere", "holds no campaign"),
        ("/samples?run=pictures&defense=nobody&seed=0", "has no attack on a defense"),
        ("/sample?run=pictures&defense=plain&seed=0&n=20", "has 20 samples"),
        ("/sample?run=pictures&defense=plain&seed=0&n=-1", "has 20 samples"),
        ("/sample?run=pictures&defense=plain&seed=x&n=1", "has no attack on a defense"),
        ("/nothing", "there is no page"),
        ("/image?run=pictures&cell=0&row=0&which=adversarial", "was not kept"),
    ],
)
def test_what_is_not_there_is_one_sentence(get, path, said):
    answer = get(path)
    assert answer.status == 404
    assert said in answer.text
    assert "Traceback" not in answer.text
