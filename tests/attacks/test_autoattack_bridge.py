"""AutoAttack as RobustBench calls it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import robustkd
from robustkd.contracts import DataError, UsageError
from robustkd.integrations.autoattack import AutoAttack, EvaluationState
from support.small_networks import all_digits, learn


@pytest.fixture(scope="module")
def trained():
    x, y = all_digits()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return learn(net, x[:1200], y[:1200]), x[1200:1230], y[1200:1230]


QUICK = {"steps": 5, "queries": 20}


def accuracy(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    return float((net(x).argmax(1) == y).float().mean())


def test_robustbenchs_benchmark_runs_on_our_engine(trained, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="robustbench is not installed: robustkd doctor --fix")
    from robustkd.integrations.robustbench import import_robustbench

    robustbench = import_robustbench()
    net, x, y = trained
    monkeypatch.setattr("robustbench.eval.load_clean_dataset", lambda *arguments: (x, y))
    monkeypatch.setattr("robustbench.eval.AutoAttack", partial(AutoAttack, **QUICK))
    clean, robust = robustbench.benchmark(net.eval(), len(x), "cifar10", "Linf", eps=0.1, batch_size=16)
    assert clean == pytest.approx(accuracy(net, x, y))
    assert robust == pytest.approx(robustkd.attack("autoattack", net, x, y, eps=0.1, **QUICK).robust_accuracy)
    # RobustBench's own branch for a saved state: with the reference AutoAttack it raises.
    kept = robustbench.benchmark(
        net.eval(), len(x), "cifar10", "Linf", eps=0.1, batch_size=16, aa_state_path=tmp_path / "state"
    )
    assert kept == pytest.approx((clean, robust))


def test_what_comes_back_is_adversarial_or_untouched(trained) -> None:
    net, x, y = trained
    found, predicted = AutoAttack(net, norm="L2", eps=0.9, verbose=False, **QUICK).run_standard_evaluation(
        x, y, return_labels=True
    )
    changed = (found != x).flatten(1).any(1)
    assert 0 < changed.sum() < len(x)
    assert torch.equal(predicted, net(found).argmax(1))
    assert (predicted[changed] != y[changed]).all()
    assert (found - x).flatten(1).norm(dim=1).max() <= 0.9 * (1 + 1e-6)


def test_an_interrupted_evaluation_goes_on_where_it_stopped(trained, tmp_path: Path) -> None:
    net, x, y = trained
    path = tmp_path / "state.safetensors"
    images_seen: list[int] = []

    class Stopping(nn.Module):
        """Raises once the first batch is done."""

        stop_at: float = float("inf")

        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            images_seen.append(len(images))
            if path.exists() and self.stop_at == 1:
                raise KeyboardInterrupt
            logits: torch.Tensor = self.network(images)
            return logits

    model = Stopping(net)
    model.stop_at = 1
    with pytest.raises(KeyboardInterrupt):
        AutoAttack(model, eps=0.1, verbose=False, **QUICK).run_standard_evaluation(x, y, bs=10, state_path=path)
    half = EvaluationState.from_disk(path)
    assert half.robust_flags is None
    assert (half.flags == -1).sum() == 20
    model.stop_at = float("inf")
    resumed = AutoAttack(model, eps=0.1, verbose=False, **QUICK).run_standard_evaluation(x, y, bs=10, state_path=path)
    whole = AutoAttack(net, eps=0.1, verbose=False, **QUICK).run_standard_evaluation(x, y, bs=10)
    assert torch.equal(resumed, whole)
    images_seen.clear()
    again = AutoAttack(model, eps=0.1, verbose=False, **QUICK).run_standard_evaluation(x, y, bs=10, state_path=path)
    assert torch.equal(again, whole)
    assert sum(images_seen) == 1  # one look at the number of classes


def test_mistakes_are_said(trained, tmp_path: Path) -> None:
    net, x, y = trained
    with pytest.raises(UsageError, match="no norm 'Linfty'"):
        AutoAttack(net, norm="Linfty")
    with pytest.raises(UsageError, match="version: Input should be"):
        AutoAttack(net, version="fast")
    path = tmp_path / "state"
    AutoAttack(net, eps=0.5, verbose=False, **QUICK).run_standard_evaluation(x[:2], y[:2], state_path=path)
    with pytest.raises(DataError, match="belongs to another evaluation"):
        AutoAttack(net, eps=0.02, verbose=False, **QUICK).run_standard_evaluation(x[:2], y[:2], state_path=path)
    path.write_bytes(b"not a state")
    with pytest.raises(DataError, match="holds no state"):
        EvaluationState.from_disk(path)


def test_the_log_says_the_result(trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net, x, y = trained
    AutoAttack(net, eps=1.0, log_path=tmp_path / "log.txt").run_standard_evaluation(x[:3], y[:3])
    assert "robust accuracy 0.00%, n = 3" in capsys.readouterr().out
    assert "robust accuracy 0.00%, n = 3" in (tmp_path / "log.txt").read_text()
