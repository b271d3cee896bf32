"""Profiles: what they say, what wins over them, and that nothing that anybody writes into a file ends in a traceback."""

import os
import sys
from contextlib import suppress

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from robustkd import plugins
from robustkd.campaigns.execution import profile
from robustkd.campaigns.file import presets, spec
from robustkd.campaigns.plan import plan
from robustkd.cli.list import command as list_command
from robustkd.contracts import RobustkdError, UsageError

FULL = """\
engine: {kind: local, workers: 3, child_gb: 2}
devices: [cuda:0, cuda:1]
precision: bf16
limits: {retries: 1, cell_hours: 0.5, max_hours: 8}
tracking: {uri: http://tracking.example, images: 0}
"""
MANY = int(os.environ.get("ROBUSTKD_FUZZ", "100"))


def test_a_profile_is_read_and_the_command_line_wins(tmp_path):
    (tmp_path / "profile.yaml").write_text(FULL)
    read = profile.load(tmp_path / "profile.yaml")
    assert (read.engine, read.params.workers, read.device) == ("local", 3, "cuda:0,cuda:1")
    assert (read.precision, read.overridden(precision="full").precision) == ("bf16", "full")
    assert (read.limits.retries, read.limits.max_hours, read.tracking.images) == (1, 8, 0)
    other = read.overridden(workers=5, device="cpu", max_hours=1.0, track=False)
    assert (other.params.workers, other.params.child_gb, other.device) == (5, 2, "cpu")
    assert (other.limits.max_hours, other.limits.retries, other.tracking.enabled) == (1, 1, False)
    assert read.overridden(workers=0).engine == "inline"
    assert profile.load(None).overridden(workers=2).make_engine().params.workers == 2
    with pytest.raises(UsageError, match="no device"):
        read.overridden(device="../gpu")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("bf16", "fp16", ["profile.yaml:3", "precision", "'full' or 'bf16'"]),
        ("limits:", "limtis:", ["profile.yaml:4", "unknown key", "did you mean 'limits'?"]),
        ("retries: 1", "retires: 1", ["profile.yaml:4", "limits.retires", "did you mean 'retries'?"]),
        ("workers: 3", "wrokers: 3", ["profile.yaml:1", "engine.wrokers", "did you mean 'workers'?"]),
        ("workers: 3", "workers: 0", ["profile.yaml:1", "engine.workers", "greater than or equal to 1"]),
        ("kind: local", "kind: dusk", ["profile.yaml:1", "unknown engine 'dusk'", "did you mean 'dask'?"]),
        ("cuda:0", "/dev/nvidia0", ["profile.yaml:2", "devices.0", "cuda:1"]),
        ("max_hours: 8", "max_hours: 0", ["profile.yaml:4", "limits.max_hours", "greater than 0"]),
        ("engine: {", "- {", ["profile.yaml"]),
    ],
)
def test_each_mistake_is_named_with_its_line_and_fix(tmp_path, old, new, said):
    assert old in FULL
    with pytest.raises(UsageError) as caught:
        profile.from_text(FULL.replace(old, new, 1), "profile.yaml", tmp_path)
    for part in said:
        assert part in str(caught.value)


def read_in_vain(text, folder):
    """Both loaders: what else they raise would reach the user as a traceback."""
    for load in (profile.from_text, spec.from_text):
        with suppress(RobustkdError):
            load(text, "file.yaml", folder)


quick = settings(max_examples=MANY, deadline=None, database=None, suppress_health_check=list(HealthCheck))
words = st.sampled_from(
    ["version", "engine", "kind", "local", "data", "digits", "threat", "linf", "defenses", "limits", "pgd", "&a", "*a"]
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | words
keys = words | st.text(max_size=5) | st.integers() | st.none()
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=20
)


@given(st.text(max_size=200) | st.lists(words | st.sampled_from(list("{}[]:,-?!&*|>'\"#%@`\n ")), max_size=60).map("".join))
@quick
def test_no_text_ends_in_a_traceback(tmp_path_factory, text):
    read_in_vain(text, tmp_path_factory.getbasetemp())


@given(trees)
@example({"]": None})
@quick
def test_no_tree_ends_in_a_traceback(tmp_path_factory, tree):
    read_in_vain(yaml.safe_dump(tree), tmp_path_factory.getbasetemp())


@given(st.data())
@quick
def test_no_mutation_of_a_good_file_ends_in_a_traceback(tmp_path_factory, data):
    text = data.draw(st.sampled_from([FULL, presets.read("quickstart"), presets.read("dverge-small")]))
    tree = yaml.safe_load(text)
    if data.draw(st.booleans()):  # in the text, or in one place of the tree
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 20)))
        text = text[:start] + data.draw(st.text(max_size=6)) + text[end:]
    else:
        place = tree
        while isinstance(place, dict | list) and place:
            key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.integers(0, 3)) == 0:
                place[key] = data.draw(trees)
                break
            place = place[key]
        text = yaml.safe_dump(tree)
    read_in_vain(text, tmp_path_factory.getbasetemp())


def test_a_stranger_s_plugin_is_listed_with_its_origin_and_loaded_when_a_campaign_names_it(tmp_path, monkeypatch, installed):
    code = "from robustkd.attacks.image.gradient.fgsm import FGSM\nclass Odd(FGSM): ...\n"
    (tmp_path / "odd_stranger.py").write_text(code)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    installed("odd-stranger", {"attacks": {"odd": "odd_stranger:Odd", "fgsm": "odd_stranger:Odd"}}, version="3.1")
    try:
        row = next(line for line in CliRunner().invoke(list_command, []).output.splitlines() if line.split()[:1] == ["odd"])
        assert "odd-stranger 3.1" in row
        text = "version: 1\nname: x\ndata: {name: digits, train: 50, test: 10}\nthreat: {eps: 0.1}\n"
        text += "defenses:\n  plain: {kind: standard, model: tiny-cnn}\nattacks:\n  a: {kind: fgsm}\n"
        plan.build(spec.from_text(text, "x.yaml", tmp_path))
        assert "odd_stranger" not in sys.modules
        spec.from_text(text.replace("kind: fgsm", "kind: odd"), "x.yaml", tmp_path)
        assert "odd_stranger" in sys.modules
        # Nobody takes a built-in's place.
        assert plugins.load("attacks", "fgsm").__module__ == "robustkd.attacks.image.gradient.fgsm"
    finally:
        sys.modules.pop("odd_stranger", None)
