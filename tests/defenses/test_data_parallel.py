"""Two processes that share every minibatch train the network that one process trains, but for rounding."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from robustkd.contracts import UsageError
from robustkd.defenses.image.adversarial.free import FreeRecipe
from robustkd.defenses.training import Recipe
from robustkd.defenses.training.data_parallel import World
from robustkd.defenses.training.epochs import require_shares
from robustkd.defenses.training.params import TrainParams
from support.data_parallel_member import trained

TRAINING = {
    "student": "tiny-cnn",
    "student_params": {"width": 4},
    "teachers": {"clean": "clean", "robust": "robust"},
    "epochs": 2,
    "batch_size": 32,
    "lr": 0.05,
    "inner": {"steps": 2},
}
JOBS: list[dict[str, Any]] = [
    {"kind": "mtard", "params": TRAINING | {"form": "journal", "temperature_rate": 0.05, "awp": {}}},
    {"kind": "ciard", "params": TRAINING | {"teacher_from": 0.0, "teacher_lr": 0.05}},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    script = Path(__file__).parents[1] / "support" / "data_parallel_member.py"
    command = [sys.executable, str(script)]
    members = [subprocess.Popen([*command, str(rank), "2", json.dumps(JOBS), str(folder)]) for rank in range(2)]
    assert [member.wait(120) for member in members] == [0, 0]
    return folder


def test_both_members_hold_the_same_weights(folder: Path) -> None:
    for number in range(len(JOBS)):
        first, second = (load_file(folder / f"weights-{number}-{rank}.safetensors") for rank in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_train_what_one_process_trains(folder: Path, tmp_path: Path) -> None:
    # MTARD's balances follow losses and entropies of whole minibatches, and so must those of the two.
    weights, history = trained(JOBS[0]["kind"], JOBS[0]["params"], tmp_path)
    of_both = load_file(folder / "weights-0-0.safetensors")
    assert all(torch.allclose(weights[name], of_both[name], atol=1e-5) for name in weights)
    metrics = json.loads((folder / "history-0-0.json").read_text())
    compared = ("train_loss", "weight_nat", "temperature_nat", "validation_accuracy", "validation_robust_accuracy")
    for ours, theirs in zip(history, metrics, strict=True):
        assert [theirs[name] for name in compared] == pytest.approx([ours[name] for name in compared], abs=1e-5)
    assert history[-1]["temperature_nat"] != history[0]["temperature_nat"]


def test_the_shares_of_a_minibatch_are_the_minibatch() -> None:
    rows = torch.randperm(11)
    shares = [World(rank, 4).share(rows) for rank in range(4)]
    assert torch.equal(torch.cat(shares), rows)
    assert {len(share) for share in shares} == {2, 3}


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(UsageError, match="several processes"):
        require_shares(World(0, 2), FreeRecipe.__new__(FreeRecipe), TrainParams(epochs=1))
    with pytest.raises(UsageError, match="minibatch of 6 cannot be shared among 4"):
        require_shares(World(0, 4), _AnyRecipe(), TrainParams(epochs=1, batch_size=6))


class _AnyRecipe(Recipe[Any]):
    def loss(self, target: Any, batch: Any) -> Any:
        raise NotImplementedError
