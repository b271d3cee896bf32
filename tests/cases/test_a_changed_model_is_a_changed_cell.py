"""A model changes behind an unchanged campaign file: its weights, a module that it imports, a file during the run, a plug-in."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from robustkd import plugins
from robustkd.attacks.image.gradient.fgsm import FGSM
from robustkd.campaigns.execution.engines.inline import InlineEngine
from robustkd.campaigns.execution.run import run
from robustkd.campaigns.file import spec
from robustkd.campaigns.plan import plan as planning
from robustkd.cli import cli
from robustkd.contracts import RobustkdError
from support.campaigns import external, tiny_campaign

MODEL = """
import torch
from shape import network


def build():
    model = network()
    model.load_state_dict(torch.load("weights.pt", weights_only=True))
    return model.eval()
"""
SHAPE = """
from torch import nn


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Identity())
"""
CAMPAIGN = tiny_campaign(
    "mine", external("my_model.py:build"), train=300, test=60, eps=0.01, gates="[{defense: mine, at_least: 0.5}]"
)


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.Tensor]:
    """The weights of a linear network that knows digits."""
    from robustkd.data import SplitParams, load_splits

    train = load_splits("digits", {}, SplitParams(train=300, test=60)).train
    x, y = torch.from_numpy(train.unit()).flatten(1), torch.as_tensor(train.labels).long()
    weight, bias = torch.zeros(10, 64, requires_grad=True), torch.zeros(10, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], 0.05)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(x @ weight.T + bias, y).backward()
        optimizer.step()
    return {"1.weight": weight.detach(), "1.bias": bias.detach()}


@pytest.fixture
def folder(tmp_path, monkeypatch, trained) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # the files are edited within a second, of equal size
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "shape.py").write_text(SHAPE)
    (tmp_path / "mine.yaml").write_text(CAMPAIGN)
    torch.save(trained, "weights.pt")
    return tmp_path


@dataclass
class Done:
    """A command that ended: its exit code and what it said."""

    returncode: int
    stdout: str
    stderr: str


def robustkd(*arguments: str) -> Done:
    """The command, which imports what lies in the working directory as it is now: a new process would."""
    for name in ("shape", "scaled_fgsm", "scaled_fgsm.size"):
        sys.modules.pop(name, None)
    done = CliRunner().invoke(cli, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit | RobustkdError), done.exception
    if isinstance(done.exception, RobustkdError):
        return Done(done.exception.exit_code, done.stdout, str(done.exception))
    return Done(done.exit_code, done.stdout, done.stderr)


def run_it(*arguments: str) -> tuple[Done, float]:
    """``robustkd run``, and the robust accuracy that it ends with."""
    done = robustkd("run", "mine.yaml", "--no-track", "--workers", "0", *arguments)
    results = json.loads(Path("runs/mine/results.json").read_text())
    return done, results["defenses"][0]["robust_accuracy"]


def test_weights_that_build_reads_are_overwritten(folder):
    first, before = run_it()
    assert first.returncode == 0, first.stderr
    assert before > 0.8
    assert json.loads(Path("runs/mine/record.json").read_text())["runs"][0]["files"].keys() >= {"weights.pt", "shape.py"}

    same, again = run_it()
    assert again == before
    assert "× fgsm" not in same.stderr  # built and compared, not attacked

    zeros = {name: torch.zeros_like(tensor) for name, tensor in torch.load("weights.pt", weights_only=True).items()}
    torch.save(zeros, "weights.pt")
    assert "weights.pt changed" in robustkd("plan", "mine.yaml").stdout
    assert "weights.pt changed since runs/mine was run" in robustkd("compare", "runs/mine", "runs/mine").stdout
    judged = robustkd("gate", "runs/mine")
    assert judged.returncode == 5
    assert "gate not judged" in judged.stdout
    assert "weights.pt changed since runs/mine was run" in judged.stdout
    changed, now = run_it()
    assert now < 0.2
    assert changed.returncode == 4  # the gate
    assert "again: mine: weights.pt changed since it was built" in changed.stderr
    assert "came out different (1 cell)" in changed.stderr

    recreated = robustkd("reproduce", "runs/mine", "--out", "again")
    assert recreated.returncode == 0, recreated.stderr
    assert torch.load("again/weights.pt", weights_only=True)["1.bias"].eq(0).all()


def test_a_module_that_it_imports_is_edited(folder):
    _, before = run_it()
    Path("shape.py").write_text(SHAPE.replace("nn.Identity()", "nn.Softmin(dim=1)"))
    plan = robustkd("plan", "mine.yaml").stdout
    assert "a file that it reads differs" in plan
    _, now = run_it()
    assert now < 0.2 < before


def test_what_is_finished_is_done_again_when_it_is_named(folder):
    run_it()
    cell = next(Path("runs/mine/cells").glob("*/*/samples.parquet"))
    written = cell.stat().st_mtime_ns
    done, _ = run_it("--redo", "fgsm")
    assert "× fgsm" in done.stderr
    assert cell.stat().st_mtime_ns > written
    wrong, _ = run_it("--redo", "fsgm")
    assert wrong.returncode == 2
    assert "did you mean 'fgsm'" in wrong.stderr


WITH_FILE = tiny_campaign("file", {"file": "{kind: external, model: tiny-cnn, weights: weights.pt}"}, train=60)


def state_of_a_tiny_network(seed: int) -> dict[str, torch.Tensor]:
    from robustkd.targets import ClassifierTarget

    torch.manual_seed(seed)
    return ClassifierTarget.from_model("tiny-cnn", input_shape=(1, 8, 8), num_classes=10).module.state_dict()


def test_a_file_is_overwritten_while_the_campaign_runs(tmp_path):
    torch.save(state_of_a_tiny_network(0), tmp_path / "weights.pt")
    planned = planning.build(spec.from_text(WITH_FILE, "file.yaml", tmp_path))
    torch.save(state_of_a_tiny_network(1), tmp_path / "weights.pt")
    results = run(planned, tmp_path / "out", InlineEngine())
    assert results.defenses[0].status == "failed"
    assert "'file' is not what the campaign was planned with: weights.pt changed" in results.defenses[0].error
    assert results.cells[0].robust_accuracy is None

    now = run(planning.build(spec.from_text(WITH_FILE, "file.yaml", tmp_path)), tmp_path / "out", InlineEngine())
    assert now.cells[0].robust_accuracy is not None


@pytest.mark.parametrize("changed", ["train", "test"])
def test_data_that_are_others_where_a_cell_runs(tmp_path, changed):
    """The same path on a worker's machine, or the file written anew after the plan was made."""

    def write(**seeds: int) -> None:
        arrays: dict[str, np.ndarray] = {}
        for part, seed in seeds.items():
            draw = np.random.default_rng(seed)
            arrays |= {
                f"x_{part}": draw.random((40, 1, 8, 8), dtype=np.float32),
                f"y_{part}": draw.permutation(np.arange(40) % 4),
            }
        np.savez(tmp_path / "data.npz", **arrays)

    write(train=0, test=1)
    text = tiny_campaign("data", train=20, test=10).replace("name: digits", "name: npz, file: data.npz")
    planned = planning.build(spec.from_text(text, "data.yaml", tmp_path))
    write(**{"train": 0, "test": 1} | {changed: 2})
    results = run(planned, tmp_path / "out", InlineEngine(), device="cpu")
    assert all(cell.robust_accuracy is None for cell in results.cells)
    told = " ".join(str(item.error) for item in (*results.defenses, *results.cells))
    assert f"the {'training' if changed == 'train' else 'test'} samples differ" in told


def test_a_worker_with_another_version_of_an_attack_refuses(tmp_path, monkeypatch):
    torch.save(state_of_a_tiny_network(0), tmp_path / "weights.pt")
    planned = planning.build(spec.from_text(WITH_FILE, "file.yaml", tmp_path))
    was = FGSM.version
    monkeypatch.setattr(FGSM, "version", "0")
    results = run(planned, tmp_path / "out", InlineEngine())
    assert results.defenses[0].robust_accuracy is None
    assert results.cells[0].status == "failed"
    assert f"'fgsm' is not what the campaign was planned with: version {was} -> 0" in results.cells[0].error


def test_numbers_of_a_model_that_cannot_be_built_any_more_are_not_shown(folder):
    run_it()
    Path("weights.pt").unlink()
    done = robustkd("run", "mine.yaml", "--no-track", "--workers", "0")
    assert done.returncode == 3
    results = json.loads(Path("runs/mine/results.json").read_text())
    assert results["defenses"][0]["robust_accuracy"] is None
    assert results["cells"][0]["status"] == "blocked"


PLUGIN = """
from robustkd import plugins
from robustkd.attacks.image.gradient.fgsm import FGSM
from .size import FACTOR


class Scaled(FGSM):
    \"\"\"FGSM, and its perturbation scaled.\"\"\"

    def run(self, target, batch, threat, rng):
        from dataclasses import replace
        found = super().run(target, batch, threat, rng)
        return replace(found, adversarial=batch.inputs + FACTOR * (found.adversarial - batch.inputs))
"""


def test_a_plugin_under_development_is_edited(folder, installed):
    package = folder / "scaled_fgsm"
    package.mkdir()
    (package / "__init__.py").write_text(PLUGIN)
    (package / "size.py").write_text("FACTOR = 1.0\n")
    installed("scaled-fgsm", {"attacks": {"scaled-fgsm": "scaled_fgsm:Scaled"}})
    text = CAMPAIGN.replace("fgsm: {kind: fgsm}", "mine: {kind: scaled-fgsm}").replace("eps: 0.01", "eps: 0.15")
    Path("mine.yaml").write_text(text)
    _, before = run_it()
    (package / "size.py").write_text("FACTOR = 0.0\n")
    plugins.refresh()
    done, now = run_it()
    assert "its source code differs" in done.stderr
    assert now > before


def test_a_network_of_robustkds_own_counts_by_its_version_not_by_its_text():
    from robustkd.plugins.sources import is_installed, source_files

    for module in ("robustkd.models", "robustkd.targets.image", "robustkd.attacks.image.gradient.fgsm"):
        file = plugins.module_file(module)
        assert is_installed(file.resolve())
        assert source_files(file) == [file.resolve()]
    assert not is_installed(Path(__file__).resolve())
