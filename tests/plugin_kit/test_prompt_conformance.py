"""Each property that is asked of plug-ins for prompts holds for the example package, and catches the one that breaks it."""

from __future__ import annotations

import pytest

from robustkd.plugin_kit import examine
from robustkd.plugin_kit.properties.checks import ANALYSIS, CHECK
from robustkd.plugin_kit.properties.groups import OF_PROMPTS
from robustkd.plugin_kit.suite import look, properties, subject, title
from support.toy_prompts import EXAMPLE, registered

# class in support/broken_prompt_plugins.py -> its group, the property that must catch it, and what is said.
CAUGHT = {
    "Greedy": ("attacks", "asks-what-it-may", "more than 4 attempts"),
    "Lucky": ("attacks", "same-attempts", "two runs with one seed differ"),
    "Crowded": ("attacks", "each-request-alone", "end elsewhere"),
    "Wasteful": ("attacks", "leaves-the-model-alone", "global random generator"),
    "Waking": ("defenses", "answers", "in training mode"),
    "Boastful": ("defenses", "can-what-it-declares", "its target does not have it"),
    "Sociable": ("defenses", "answers-one-by-one", "answered otherwise"),
    "Sworn": ("defenses", "saved-and-loaded-again", "answers differently"),
    "Talkative": ("judges", "judges", "returned a list"),
    "Relative": ("judges", "each-output-alone", "other verdicts"),
    "Convinced": ("judges", "tells-apart", "says True of everything"),
    "Harmless": ("datasets", "loads-prompts", "no harmless requests"),
    "Restless": ("datasets", "same-prompts", "the test requests differ"),
    "Uniform": ("detectors", "scores-prompts", "the same score"),
    "Ranking": ("detectors", "prompts-scored-alone", "one by one"),
    "Absent": ("detectors", "filter-saved-and-loaded", "scores differently"),
}


@pytest.fixture
def world(tmp_path):
    with registered(tmp_path):
        yield


@pytest.fixture
def broken(installed, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    points: dict[str, dict[str, str]] = {}
    for name, (group, _, _) in CAUGHT.items():
        points.setdefault(group, {})[name.lower()] = f"support.broken_prompt_plugins:{name}"
    points["targets"] = {"cupboard-assistant": "robustkd_example.cupboard:Assistant"}
    points["judges"] |= {
        "says-the-number": "robustkd_example.cupboard:SaysTheNumber",
        "does-not-refuse": "robustkd_example.cupboard:DoesNotRefuse",
    }
    installed("broken", points)


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("attacks", "extra-words"),
        ("attacks", "first-words"),
        ("defenses", "guarded-cupboard"),
        ("judges", "says-the-number"),
        ("datasets", "cupboard"),
        ("checks", "over-refusal"),
        ("detectors", "perplexity"),
    ],
)
def test_the_example_package_conforms(world, group, name):
    outcomes = examine(group, name)
    assert len(outcomes) > 6
    assert [(outcome.property, outcome.why) for outcome in outcomes if outcome.status != "passed"] == []


@pytest.mark.parametrize("name", CAUGHT)
def test_a_promise_about_prompts_that_is_broken_is_caught(broken, name):
    group, wanted, said = CAUGHT[name]
    tested = subject(group, name.lower())
    (item,) = [item for item in properties(group, tested.plugin) if title(item) == wanted]
    outcome = look(item, tested)
    assert (outcome.status, said in outcome.why) == ("failed", True), outcome
    assert outcome.fix


def test_every_property_of_prompts_is_seen_to_fail():
    common = {
        title(item) for item in (*properties("attacks")[:5], *CHECK, *ANALYSIS)
    }  # these are seen to in test_conformance.py
    asked = {(group, title(item)) for group, items in OF_PROMPTS.items() for item in items}
    assert {pair for pair in asked if pair[1] not in common} == {(group, wanted) for group, wanted, _ in CAUGHT.values()}


def test_what_cannot_be_looked_at_is_said(robustkd):
    code, out, _ = robustkd("test-plugin", "gcg")
    assert code == 0
    assert "4 of 9 properties could not be looked at" in out
    assert "it needs embeddings and gradients and log-probabilities and tokens of a model" in out
    assert "try it in a campaign" in out


def test_a_judge_that_is_begun_conforms(robustkd, installed, monkeypatch, tmp_path):
    folder = tmp_path / "robustkd-polite"
    assert robustkd("new", "judge", "polite", "--out", str(folder))[0] == 0
    monkeypatch.syspath_prepend(str(folder))
    installed("robustkd_polite", {"judges": {"polite": "robustkd_polite:Polite"}})
    assert {outcome.status for outcome in examine("judges", "polite")} == {"passed"}
    assert "judges:\n      my-polite: {kind: polite}" in robustkd("describe", "polite")[1]
