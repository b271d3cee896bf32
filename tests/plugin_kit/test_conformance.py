"""Each property of the conformance suite holds for a sound plug-in, and catches the one that breaks it."""

from __future__ import annotations

import functools
import json

import pytest
from second_device.on_images import TEACHERS

from robustkd import plugins
from robustkd.plugin_kit import fixtures
from robustkd.plugin_kit.suite import look, properties, subject, title

# class in support/broken_plugins.py -> its group, the property that must catch it, and what is said.
CAUGHT = {
    "Undocumented": ("attacks", "documentation", "no docstring of its own"),
    "Anything": ("attacks", "contract", "no subclass of robustkd.contracts.Params"),
    "Lax": ("attacks", "mistakes", "an unknown key is accepted"),
    "Overshoots": ("attacks", "threat-model", "left its budget"),
    "Boasts": ("attacks", "honest", "successes on inputs that the model classifies rightly"),
    "Draws": ("attacks", "deterministic", "two runs with one seed differ"),
    "Averages": ("attacks", "each-sample-alone", "run in"),
    "Trains": ("attacks", "leaves-no-trace", "mode of"),
    "Miscounts": ("attacks", "counts-passes", "the model made"),
    "Idle": ("attacks", "effective", "breaks none of"),
    "Moves": ("attacks", "nothing-from-nothing", "at eps 0"),
    "Unready": ("defenses", "trains", "in training mode"),
    "Boastful": ("defenses", "has-what-it-declares", "its target does not have it"),
    "Unseeded": ("defenses", "deterministic", "different weights"),
    "Forgetful": ("defenses", "survives-a-kill", "ends in other weights"),
    "Unsaved": ("defenses", "saved-and-loaded", "answers differently"),
    "Meddles": ("defenses", "leaves-others-alone", "changed"),
    "Secretive": ("defenses", "says-what-it-looks-at", "another threat model gives other weights"),
    "Wordless": ("checks", "finds", "without a word"),
    "Restless": ("checks", "same-finding", "two runs differ"),
    "Careless": ("checks", "leaves-the-model", "changed"),
    "Ragged": ("analyses", "tabulates", "columns are named"),
    "Fickle": ("analyses", "same-table", "two runs with one seed differ"),
    "Rough": ("analyses", "leaves-the-target", "global random generator"),
    "Bright": ("datasets", "loads", "outside [0, 1]"),
    "Shuffled": ("datasets", "same-data", "the samples differ"),
    "Wide": ("models", "builds", "return"),
    "Constant": ("models", "seeded", "two seeds give the same weights"),
    "Normed": ("models", "images-alone", "one by one"),
    "Detached": ("models", "differentiable", "no gradient reaches the image"),
    "Hidden": ("models", "state-is-whole", "computes something else"),
    "Shrinks": ("transforms", "keeps-shape", "comes out as"),
    "Clocked": ("transforms", "seeded-stage", "two results"),
    "Opaque": ("transforms", "attackable", "no gradient goes through it"),
    "Columns": ("detectors", "scores", "scores of shape (40, 1)"),
    "Relative": ("detectors", "images-scored-alone", "one by one"),
    "Guesses": ("detectors", "same-scores", "different scores"),
    "Amnesiac": ("detectors", "saved-with-its-model", "scores differently"),
    "Trespasses": ("detectors", "leaves-the-model", "changed"),
    "Blunt": ("detectors", "attackable-scores", "no gradient goes through"),
    "Hoarder": ("condensers", "makes-images", "160 images of 160"),
    "Dice": ("condensers", "same-set", "different sets"),
    "Rounded": ("condensers", "stored-whole", "the set differs"),
    "Forgets": ("condensers", "condensing-survives-a-kill", "another set"),
    "Scribbles": ("condensers", "leaves-targets-alone", "changed the training images"),
    "Peeks": ("condensers", "says-whether-it-looks-at-the-threat", "another threat model"),
}


@pytest.fixture
def broken(installed):
    points: dict[str, dict[str, str]] = {"attacks": {"fine": "support.broken_plugins:Fine"}}
    for name, (group, _, _) in CAUGHT.items():
        points.setdefault(group, {})[name.lower()] = f"support.broken_plugins:{name}"
    installed("broken-plugins", points)


@pytest.mark.parametrize("name", CAUGHT)
def test_a_broken_promise_is_caught(broken, name):
    group, wanted, said = CAUGHT[name]
    (item,) = [item for item in properties(group) if title(item) == wanted]
    outcome = look(item, subject(group, name.lower()))
    assert outcome.status == "failed"
    assert said in outcome.why
    assert outcome.fix


def test_every_property_but_the_registry_s_own_is_seen_to_fail():
    asked = {
        (group, title(item))
        for group in (
            "attacks",
            "defenses",
            "checks",
            "analyses",
            "datasets",
            "models",
            "transforms",
            "detectors",
            "condensers",
        )
        for item in properties(group)
    }
    common = {"contract", "parameters", "mistakes", "written-down", "documentation"}
    seen = {(group, wanted) for group, wanted, _ in CAUGHT.values()}
    assert {pair for pair in asked - seen if pair[1] not in common} == set()


def test_the_command_says_what_holds_and_what_does_not(broken, robustkd):
    code, out, _ = robustkd("test-plugin", "fine", "miscounts")
    assert code == 1
    assert "fine  (attack of broken-plugins 1.0): conforms" in out
    assert "miscounts  (attack of broken-plugins 1.0): 1 of 13 properties fail" in out
    assert "fix: ask the model through an Oracle" in out
    code, out, _ = robustkd("test-plugin", "fine", "--quiet")
    assert (code, len(out.splitlines())) == (0, 1)
    code, out, _ = robustkd("test-plugin", "miscounts", "--json")
    (told,) = json.loads(out)
    assert code == 1
    assert [item["property"] for item in told["properties"] if item["status"] == "failed"] == ["counts-passes"]


def test_a_name_of_a_defense_and_of_its_target_is_the_defenses(robustkd):
    """It ended with an error, as there is no suite for targets."""
    code, out, _ = robustkd("test-plugin", "negative-prompt", "nasa", "--quiet")
    assert (code, len(out.splitlines())) == (0, 2)


def test_names_and_settings_are_checked(broken, robustkd):
    code, _, err = robustkd("test-plugin", "fien")
    assert code == 2
    assert "did you mean 'fine'?" in err
    code, _, err = robustkd("test-plugin", "local")
    assert code == 2
    assert "there is no conformance suite for engines" in err
    code, _, err = robustkd("test-plugin", "fine", "--set", "stpes=2")
    assert code == 2
    assert "stpes" in err


ALL = [
    (group, name)
    for group in plugins.GROUPS
    if group not in ("targets", "engines")
    for name in plugins.names(group)
    if plugins.family(group, name) is None
]
CHEAP = {
    "autoattack": {"steps": 5, "queries": 50},
    "square": {"queries": 200},
    "patch-pgd": {"places": 2, "steps": 10},
    "patch-rs": {"queries": 200},
    "lavan": {"steps": 20},
    "universal-patch": {"epochs": 2, "samples": 100},
    **{key: {"epochs": 2, "samples": 100} for key in ("adv-encoder", "adv-encoder-patch")},
    # They take a caption model; tests/defenses/test_caption_models.py has one.
    **dict.fromkeys(("caption-competition", "caption-distil"), None),
    "captions": None,  # so does it; tests/analyses/test_what_captions_say.py has one
    "clip-folder": None,  # it is whatever its folder holds; tests/targets/test_two_tower.py makes some
    **{key: {"queries": 200} for key in ("simba", "bandits")},
    **{key: {"queries": 200} for key in ("hopskipjump", "rays", "surfree", "geoda", "random-directions")},
    "robustbench": None,  # its weights are on a remote drive; tests/defenses/test_robustbench.py makes some
    "torchdistill": None,  # its library need not be installed; tests/defenses/test_torchdistill.py
    "external": None,  # it is whatever its code is
    "external-classifier": None,  # so is it; tests/cases/test_a_classifier_of_ones_own_as_a_judge.py has one
    "onnx-classifier": None,  # it is whatever its file is
    "onnx-detector": None,  # so is it; tests/judges/test_onnx_detector.py makes some
    "causal-lm": None,  # its weights are on a hub; tests/defenses/test_text_training.py makes some
    "chat-endpoint": None,  # it is whatever its server is; tests/targets/test_chat_endpoint.py has one
    "train-on-condensed": None,  # it takes a condensed set; tests/condensers/test_condensed_data.py makes some
    "clip-score": None,  # its weights are on a hub
    "clip-similarity": None,  # so are its; tests/defenses/test_drawing_analyses.py makes some
    "hub": None,  # it takes a diffusion model and a classifier; tests/defenses/test_drawing_analyses.py
    "tampered-answers": None,  # it takes a detector of answers; tests/analyses/test_tampered_answers.py makes some
    "slowdown": {"attack": {"kind": "pgd", "steps": 5, "loss": "margin"}},
    "diff-protect": None,  # it takes a diffusion model; tests/attacks/test_diff_protect.py has one
    "sdedit": None,  # so does it
    **dict.fromkeys(
        ("safety-checker", "negative-prompt", "prompt-filter", "nasa", "sld", "safree")
    ),  # so do they; tests/defenses/test_drawing_guards.py, test_training_free.py
    "text-to-image": None,  # its weights are on a hub; tests/defenses/test_text_to_image_external.py makes some
}


@pytest.mark.slow
@pytest.mark.parametrize(("group", "name"), [pair for pair in ALL if CHEAP.get(pair[1], {}) is not None], ids=str)
def test_every_built_in_plugin_conforms(group, name, monkeypatch):
    if name in TEACHERS:
        monkeypatch.setattr(fixtures, "classifiers", functools.partial(fixtures.classifiers, model=TEACHERS[name]))
    tested = subject(group, name, CHEAP.get(name))
    outcomes = [look(item, tested) for item in properties(group, tested.plugin)]
    assert [(outcome.property, outcome.why) for outcome in outcomes if outcome.status == "failed"] == []
