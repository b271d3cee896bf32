"""The example that ``describe`` prints for each plug-in is a valid part of a campaign file."""

import json
import sys

import pytest
import yaml

from robustkd import plugins
from robustkd.campaigns.file import spec
from robustkd.cli import main

BLOCKS = ("attacks", "defenses", "judges", "checks", "analyses", "datasets", "models", "transforms", "detectors", "condensers")
NAMES = [(group, name) for group in BLOCKS for name in plugins.names(group) if plugins.family(group, name) is None]
NAMES += [("attacks", "torchattacks:PGD"), ("attacks", "foolbox:LinfPGD"), ("attacks", "foolbox:VirtualAdversarialAttack")]

REST = {
    "images": {
        "data": {"name": "digits"},
        "threat": {"norm": "linf", "eps": 0.1},
        "defenses": {"some": {"kind": "standard", "model": "tiny-cnn"}},
        "attacks": {"some": {"kind": "fgsm"}},
    },
    "text": {
        "data": {"name": "vaults"},
        "threat": {"attempts": 20},
        "defenses": {"some": {"kind": "lm-pretrain"}},
        "attacks": {"some": {"kind": "direct"}},
    },
    "text-to-image": {
        "data": {"name": "digit-captions"},
        "threat": {"attempts": 20},
        "defenses": {"some": {"kind": "text-to-image-pretrain"}, "judge": {"kind": "concept-classifier", "model": "tiny-cnn"}},
        "judges": {"concept": {"kind": "concept-classifier", "classifier": "judge"}},
        "attacks": {"some": {"kind": "no-attack"}},
    },
}


def described(group, name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["robustkd", "describe", name, "--group", group, "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    return json.loads(capsys.readouterr().out)[0]


@pytest.mark.parametrize(("group", "name"), NAMES, ids=lambda value: value)
def test_the_example_of_every_plugin_is_valid(group, name, capsys, monkeypatch, tmp_path):
    item = described(group, name, capsys, monkeypatch)
    block = yaml.safe_load(item["example"])
    document = {"version": 1, "name": "example", **REST[plugins.modalities(plugins.load(group, name))[0]]}
    for key, value in block.items():
        document[key] = document.get(key, {}) | value if isinstance(value, dict) else value
    campaign = spec.from_text(yaml.safe_dump(document), "example.yaml", tmp_path)
    assert campaign.name == "example"
    if group == "checks":
        assert name in {check.name for check in campaign.checks}
    else:
        assert name in item["example"]


@pytest.mark.parametrize("key", ["steps", "restarts", "loss"])
def test_describe_tells_where_a_plugin_comes_from_and_how_it_is_tuned(key, capsys, monkeypatch):
    item = described("attacks", "pgd", capsys, monkeypatch)
    assert item["package"] == "robustkd"
    assert item["location"] == "robustkd.attacks.image.gradient.pgd:PGD"
    assert item["norms"] == ["linf", "l2", "l1"]
    assert "steepest(grad_x loss" in item["method"]
    assert item["params"]["properties"][key]["description"]
