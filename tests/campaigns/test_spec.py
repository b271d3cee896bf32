from pathlib import Path

import pytest

from robustkd.campaigns.file import presets, spec
from robustkd.campaigns.file.campaign import Campaign
from robustkd.contracts import UsageError

GOOD = """\
version: 1
name: demo
data: {name: digits, test: 40}
threat: {norm: linf, eps: 8/255}
defenses:
  plain: {kind: standard, model: tiny-cnn, epochs: 1}
  robust: {kind: mtard, teachers: {clean: plain, robust: plain}, student: tiny-cnn, epochs: 1}
attacks:
  pgd: {kind: pgd, steps: 2}
  near: {kind: cw-l2, threat: {norm: l2, eps: 1e0}}
matrix: {seeds: [0, 1]}
"""


def load(text: str, tmp_path: Path) -> Campaign:
    file = tmp_path / "campaign.yaml"
    file.write_text(text)
    return spec.load(file)


def complaint(text: str, tmp_path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        load(text, tmp_path)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_good_file_is_read(tmp_path):
    campaign = load(GOOD, tmp_path)
    assert campaign.threat.eps == pytest.approx(8 / 255)
    assert campaign.defenses["robust"].references == ["plain"]
    assert campaign.attacks["pgd"].plugin.params.steps == 2
    assert (campaign.attacks["near"].threat.norm, campaign.attacks["near"].threat.eps) == ("l2", 1.0)
    assert campaign.seeds == (0, 1)


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_is_valid(name):
    assert spec.load(name).name == name


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("steps: 2", "stpes: 2", ["campaign.yaml:9", "attacks.pgd.stpes", "unknown key", "did you mean 'steps'?"]),
        ("teachers:", "teachrs:", ["campaign.yaml:7", "defenses.robust.teachrs", "did you mean 'teachers'?"]),
        ("robust: plain}", "robuts: plain}", ["campaign.yaml:7", "defenses.robust.teachers.robuts", "did you mean 'robust'?"]),
        ("kind: pgd,", "kind: pgdd,", ["campaign.yaml:9", "attacks.pgd.kind", "unknown attack 'pgdd'", "did you mean 'pgd'?"]),
        ("kind: standard", "kind: standart", ["campaign.yaml:6", "unknown defense", "did you mean 'standard'?"]),
        ("name: digits", "name: digit", ["campaign.yaml:3", "unknown dataset", "did you mean 'digits'?"]),
        ("test: 40", "tset: 40", ["campaign.yaml:3", "data.tset", "did you mean 'test'?"]),
        ("eps: 8/255", "eps: -0.1", ["campaign.yaml:4", "threat.eps", "-0.1", "greater than or equal to 0"]),
        ("eps: 8/255", "eps: lots", ["campaign.yaml:4", "threat.eps", "valid number"]),
        ("eps: 8/255", "eps: 1/0", ["campaign.yaml:4", "divides by zero"]),
        ("norm: linf, eps: 8", "norm: linff, eps: 8", ["campaign.yaml:4", "threat.norm", "linf"]),
        ("clean: plain", "clean: plan", ["campaign.yaml:7", "'plan', which is not in this file", "did you mean 'plain'?"]),
        ("clean: plain", "clean: robust", ["in a circle: robust -> robust"]),
        ("matrix:", "matirx:", ["campaign.yaml:11", "did you mean 'matrix'?"]),
        ("version: 1", "version: 1\nseeds: [0]", ["campaign.yaml:2", "'seeds' is a key of 'matrix': write it below that"]),
        ("matrix: {", "matrix: {checks: none, ", ["campaign.yaml:11", "'checks' is a key of the file itself"]),
        ("version: 1", "version: 1\nkind: pgd", ["campaign.yaml:2", "kind: unknown key (known here: version"]),
        ("matrix: {", "matrix: {exclude: [{defense: plan}], ", ["there is no defense 'plan'", "did you mean 'plain'?"]),
        ("version: 1\n", "", ["campaign.yaml", "version", "missing"]),
        ("version: 1", "version: 1\nversion: 1", ["campaign.yaml:2", "'version' stands twice (first on line 1)"]),
        ("name: demo", "name: ../demo", ["campaign.yaml:2", "letters, digits"]),
        ("name: demo", "name: [", ["no valid YAML"]),
        ("name: demo", "name: !!python/object/apply:os.system [id]", ["no valid YAML", "python/object"]),
    ],
)
def test_each_mistake_is_named_with_its_line_and_fix(tmp_path, old, new, said):
    assert old in GOOD
    text = complaint(GOOD.replace(old, new, 1), tmp_path)
    for part in said:
        assert part in text
    assert len(text.splitlines()) < 20


def test_every_mistake_is_named_at_once(tmp_path):
    text = complaint(GOOD.replace("steps: 2", "stpes: 2").replace("epochs: 1}", "epoch: 1}"), tmp_path)
    assert text.count("unknown key") == 3


def test_an_unknown_preset_is_named():
    with pytest.raises(UsageError, match="did you mean 'quickstart'"):
        spec.load("quickstrat")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"there is no file .*nothing\.yaml"):
        spec.load(tmp_path / "nothing.yaml")


def test_checks_are_a_word_or_a_block(tmp_path):
    def checks(text):
        file = tmp_path / "checks.yaml"
        file.write_text(GOOD + text)
        return {check.name: check.params.model_dump() for check in spec.load(file).checks}

    assert checks("") == checks("checks: standard\n") == checks("checks: {level: standard}\n")
    assert checks("checks: none\n") == {}
    few = checks("checks: {level: thorough, samples: 7}\n")
    assert few["binarization-test"]["samples"] == few["randomised-output"]["samples"] == 7
    assert "binarization-test" not in checks("")
    assert "standard" in complaint(GOOD + "checks: thorogh\n", tmp_path)
    assert "samples" in complaint(GOOD + "checks: {samples: 1}\n", tmp_path)
