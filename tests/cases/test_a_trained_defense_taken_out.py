"""A defense of a campaign as a model: named wherever one is asked for, and written as files that others read."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import robustkd
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.cli import cli
from robustkd.contracts import StoreError, UsageError
from robustkd.data import load_splits
from robustkd.data.splits import SplitParams
from support.campaigns import tiny_campaign


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a campaign file that was run."""
    home = tmp_path_factory.mktemp("taken-out")
    text = tiny_campaign(
        "taken", train=300, defenses={"student": "{kind: standard, model: tiny-cnn, epochs: 4}"}, matrix="{seeds: [0, 1]}"
    )
    (home / "taken.yaml").write_text(text)
    robustkd.run(home / "taken.yaml", home / "runs" / "taken", workers=0, device="cpu", track=False)
    return home


@pytest.fixture
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


def digits():
    return torch.from_numpy(load_splits("digits", {}, SplitParams(train=300, test=20)).test.unit())


@pytest.mark.parametrize("reference", ["taken.yaml#student", "runs/taken#student", "taken#student/0"])
def test_it_is_named_by_file_folder_or_name(here, reference):
    with torch.no_grad():
        logits = robustkd.load_model(reference)(digits())
    right = logits.argmax(1).numpy() == load_splits("digits", {}, SplitParams(train=300, test=20)).test.labels
    cell = next(item for item in robustkd.load("runs/taken").defenses if item.seed == 0)
    assert right.mean() == cell.clean_accuracy


def test_seeds_are_told_apart(here):
    with torch.no_grad():
        first, second = (robustkd.load_model(f"taken#student/{seed}")(digits()) for seed in (0, 1))
    assert not torch.allclose(first, second)


def test_it_is_attacked_from_the_command_line(here):
    words = ["attack", "fgsm", "--model", "taken.yaml#student", "--eps", "0.1", "--n", "20", "--device", "cpu"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "robust" in done.output


@pytest.mark.parametrize(
    ("reference", "error", "said"),
    [
        ("taken#studnt", UsageError, "no defense 'studnt'"),
        ("taken#student/7", UsageError, "not trained with seed '7'"),
        ("nowhere#student", UsageError, "nowhere"),
    ],
)
def test_what_is_not_there_is_said(here, reference, error, said):
    with pytest.raises(error, match=said):
        robustkd.load_model(reference)


def test_a_campaign_that_was_not_run(here):
    (here / "other.yaml").write_text(tiny_campaign("other"))
    with pytest.raises(StoreError, match="holds no trained defense"):
        robustkd.load_model("other.yaml#plain")


@pytest.mark.parametrize("form", ["safetensors", "torchscript", "torch-export", "onnx"])
def test_it_is_written_and_answers_as_before(here, tmp_path, form):
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    path = (
        tmp_path / {"safetensors": "model", "torchscript": "model.pt", "torch-export": "model.pt2", "onnx": "model.onnx"}[form]
    )
    words = ["export", "taken.yaml#student/1", "--format", form, "--out", str(path)]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    with torch.no_grad():
        expected = robustkd.load_model("taken#student/1")(digits()).numpy()
        if form == "onnx":
            import onnxruntime

            again = onnxruntime.InferenceSession(str(path)).run(None, {"pixels": digits().numpy()})[0]
        elif form == "safetensors":
            again = robustkd.load_model(path)(digits()).numpy()
            assert "Adversarial robustness" in (path / "README.md").read_text()
        else:
            again = (torch.jit.load(str(path)) if form == "torchscript" else torch.export.load(str(path)).module())(
                digits()
            ).numpy()
    np.testing.assert_allclose(again, expected, atol=1e-4)
    assert sorted(tmp_path.iterdir()) == [path]
    twice = CliRunner().invoke(cli, words)
    assert twice.exit_code != 0


def test_adversarial_images_of_a_named_defense_as_a_folder(here, tmp_path):
    words = ["export", "taken#student", "--out", f"{tmp_path / 'adv'}/", "--device", "cpu"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "adv").rglob("*.png"))) >= 20


def naming(reference: str, **more: str) -> str:
    """A campaign that attacks a trained defense of another one."""
    params = "".join(f", {name}: {value}" for name, value in more.items())
    return tiny_campaign("second", train=300, defenses={"again": f"{{kind: external, file: '{reference}'{params}}}"})


@pytest.mark.parametrize("reference", ["taken.yaml#student", "runs/taken#student/0", "taken#student/0"])
def test_another_campaign_attacks_it(home, tmp_path, reference):
    (home / "second.yaml").write_text(naming(reference))
    results = robustkd.run(home / "second.yaml", tmp_path / "out", workers=0, device="cpu", track=False)
    assert not results.incomplete
    first = next(item for item in robustkd.load(home / "runs/taken").defenses if item.seed == 0)
    (again,) = results.defenses
    assert (again.clean_accuracy, again.robust_accuracy) == (first.clean_accuracy, first.robust_accuracy)
    assert again.target_hash == first.target_hash


def test_another_seed_of_it_is_another_cell(home, tmp_path):
    plans = [planning.build(spec.from_text(naming(f"taken#student/{seed}"), "text", home)) for seed in (0, 0, 1)]
    ids = [plan.of("train")[0].id for plan in plans]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("reference", "more", "said"),
    [
        ("taken.yaml#studnet", {}, "'taken.yaml' has no defense 'studnet'"),
        ("taken.yaml#student/7", {}, "'student' was not trained with seed '7'"),
        ("nowhere.yaml#student", {}, "there are no results of 'nowhere.yaml'"),
    ],
)
def test_one_that_is_not_there_is_named_in_the_campaign_file(home, reference, more, said):
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        spec.from_text(naming(reference, **more), "text", home)
    assert "defenses.again.file" in str(caught.value)


def test_it_has_its_own_normalisation(home, tmp_path):
    text = naming(str(home / "taken.yaml#student"), normalise="mnist")
    results = robustkd.run(text, tmp_path / "out", workers=0, device="cpu", track=False)
    assert "a trained defense has its own normalise" in results.defenses[0].error
