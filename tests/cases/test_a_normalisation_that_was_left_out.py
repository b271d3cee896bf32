"""A network that learned from normalised images: told so when it is given pixels, and right with its constants."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import robustkd
from robustkd import plugins
from robustkd.cli import cli
from robustkd.contracts import TargetError, UsageError
from robustkd.data import SplitParams, load_splits
from robustkd.targets import load_target
from robustkd.targets.checkpoints import load_weights
from support.campaigns import external, tiny_campaign
from support.published_networks import resnet20

MEAN, STD = (0.5,), (0.5,)
CODE = """
import torch
from torch import nn


class Nearest(nn.Module):
    '''The nearest mean image of a class, among images in [-1, 1].'''

    def __init__(self):
        super().__init__()
        self.prototypes = nn.Parameter(torch.zeros(10, 64))

    def forward(self, x):
        return -torch.cdist(x.flatten(1), self.prototypes) ** 2
"""
CAMPAIGN = tiny_campaign(
    "mine", external("nearest.py:Nearest", weights="nearest.pt", normalise="NORMALISE"), train=None, test=200, eps=0.01
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Here are nearest.py and its weights."""
    monkeypatch.chdir(tmp_path)
    train = load_splits("digits", {}, SplitParams(test=200)).train
    images, labels = (torch.from_numpy(train.unit()).flatten(1) - 0.5) / 0.5, torch.as_tensor(train.labels)
    (tmp_path / "nearest.py").write_text(CODE)
    torch.save({"prototypes": torch.stack([images[labels == k].mean(0) for k in range(10)])}, tmp_path / "nearest.pt")
    return tmp_path


ATTACK = ["attack", "fgsm", "--model", "nearest.py:Nearest", "--weights", "nearest.pt", "--n", "200", "--eps", "0.01", "--json"]


def attacked(*options: str) -> dict[str, float]:
    done = CliRunner().invoke(cli, [*ATTACK, *options])
    assert done.exit_code == 0, done.output
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.usefixtures("no_remedies")
def test_the_finding_names_the_constants(only_checks: Callable[..., None], folder: Path) -> None:
    only_checks("not-trained")
    audit = [
        "audit",
        "nearest.py:Nearest",
        "--weights",
        "nearest.pt",
        "--n",
        "200",
        "--eps",
        "0.01",
        "--attack",
        "fgsm",
        "--json",
    ]
    done = CliRunner().invoke(cli, audit)
    (finding,) = [item for item in json.loads(done.stdout)["checks"] if item["name"] == "not-trained"]
    evidence = finding["evidence"]
    assert (finding["fired"], finding["severity"], done.exit_code) == (True, "severe", 4)
    # Others that nearly are these may be luckier.
    assert evidence["accuracy_normalised"] >= attacked("--normalise", "inception")["clean_accuracy"]
    assert "is the normalisation missing?" in evidence["explanation"]
    assert f"normalise: {evidence['constants']}" in finding["fix"]
    again = json.loads(CliRunner().invoke(cli, [*audit, "--normalise", "inception"]).stdout)
    assert not any(item["fired"] for item in again["checks"] if item["name"] == "not-trained")


def test_a_command_a_campaign_and_python_say_the_same_number(folder: Path) -> None:
    by_name = attacked("--normalise", "inception")
    assert by_name["clean_accuracy"] > attacked()["clean_accuracy"] + 0.1
    assert attacked("--normalise", "{mean: [0.5], std: [0.5]}") == by_name

    data = load_splits("digits", {}, SplitParams(test=200)).test
    namespace: dict[str, type[nn.Module]] = {}
    exec(CODE, namespace)
    network = namespace["Nearest"]()
    load_weights(network, folder / "nearest.pt")
    for normalise in ("inception", (MEAN, STD), {"mean": MEAN, "std": STD}):
        found = robustkd.attack("fgsm", network, data.unit(), data.labels, eps=0.01, normalise=normalise)
        assert found.to_dict() == by_name

    for normalise in ("inception", "{mean: [0.5], std: [0.5]}"):
        (folder / "mine.yaml").write_text(CAMPAIGN.replace("NORMALISE", normalise))
        assert CliRunner().invoke(cli, ["run", "mine.yaml", "--no-track", "-q", "--workers", "0"]).exit_code == 0
        (cell,) = json.loads((folder / "runs/mine/results.json").read_text())["cells"]
        assert {name: cell[name] for name in ("clean_accuracy", "robust_accuracy")} == {
            name: by_name[name] for name in ("clean_accuracy", "robust_accuracy")
        }

    saved = next(path.parent for path in (folder / "runs/mine/cells").glob("*/*/card.json"))
    target = load_target(saved, ["nearest.py:Nearest"])
    x = torch.from_numpy(data.unit())
    assert torch.equal(target(x), network((x - 0.5) / 0.5))
    with pytest.raises(UsageError, match="takes pixels"):
        robustkd.attack("fgsm", target, data.unit(), data.labels, normalise="inception")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("imagnet", "did you mean 'imagenet'"),
        ("imagenet", "mean has 3 numbers, the images have 1 channel"),
        ("{mean: [0.5], std: [0.5, 0.5]}", "mean has 1 numbers, std has 2"),
        ("{mean: [0.5], std: [0]}", "std"),
        ("7", "normalise"),
    ],
)
def test_constants_that_cannot_be_are_refused(folder: Path, given: str, said: str) -> None:
    with pytest.raises((UsageError, TargetError)) as caught:
        CliRunner().invoke(cli, [*ATTACK, "--normalise", given], catch_exceptions=False)
    assert said in str(caught.value)
    (folder / "mine.yaml").write_text(CAMPAIGN.replace("NORMALISE", given))
    done = CliRunner().invoke(cli, ["run", "mine.yaml", "--no-track", "-q", "--workers", "0"])
    assert said in done.output + str(done.exception)


def test_without_it_a_campaign_is_the_one_that_it_was(folder: Path) -> None:
    plugin = plugins.make("defenses", {"kind": "external", "code": "nearest.py:Nearest", "weights": folder / "nearest.pt"})
    assert "normalise" not in plugin.params.model_dump()


@pytest.mark.slow
@pytest.mark.shared_data
def test_a_published_network_is_told_of_its_normalisation(shared_data: Path) -> None:
    data = load_splits("cifar10", {"root": shared_data / "cifar10"}, SplitParams(test=300)).test
    network = resnet20(shared_data)
    report = robustkd.audit(network, data.unit(), data.labels, attacks="fgsm", eps=1 / 255, samples=4)
    (finding,) = [item for item in report.findings if item.name == "not-trained"]
    assert finding.fired
    assert finding.evidence["accuracy"] < 0.5
    assert finding.evidence["accuracy_normalised"] > 0.85
    assert finding.evidence["constants"] in ("imagenet", "cifar10", "cifar100")
    found = robustkd.attack("fgsm", network, data.unit(), data.labels, eps=0.0, normalise="imagenet")
    assert found.clean_accuracy > 0.85
