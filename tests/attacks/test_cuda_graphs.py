"""Replayed passes. Where there is no CUDA, what is recorded there is stood in for by the pass itself, which is noted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustkd
from robustkd import plugins
from robustkd.attacks.image.engine import cuda_graphs
from robustkd.attacks.image.engine.cuda_graphs import Replays, replayed
from robustkd.contracts import Batch, ThreatModel
from robustkd.contracts.random import SampleRng
from robustkd.plugin_kit import fixtures
from robustkd.targets import ClassifierTarget, CountedTarget, SplitTarget, frozen

with_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


def classifier(module: nn.Module | None = None) -> ClassifierTarget:
    torch.manual_seed(0)
    module = module or nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    return ClassifierTarget(module.eval(), num_classes=10, input_shape=(1, 8, 8))


def images(count: int) -> Tensor:
    return torch.from_numpy(fixtures.digits().test.unit())[:count].clone().requires_grad_()


class Recorder:
    """Stands in for CUDA's: what it records is the pass itself, to which ``change`` is done."""

    def __init__(self, change: Any = None) -> None:
        self.recorded: list[int] = []
        self.replays = 0
        self._change = change or (lambda outputs: outputs)

    def __call__(self, target: Any, x: Tensor) -> Any:
        self.recorded.append(len(x))

        def replay(given: Tensor) -> Tensor:
            assert given.shape == x.shape
            self.replays += 1
            outputs: Tensor = self._change(target(given))
            return outputs

        return replay


@pytest.fixture
def worth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "_timed", lambda target, x: (target(x).detach(), True))


def recording(monkeypatch: pytest.MonkeyPatch, change: Any = None) -> Recorder:
    recorder = Recorder(change)
    monkeypatch.setattr(cuda_graphs, "recorded", recorder)
    return recorder


def test_a_shape_is_recorded_once_it_has_come_often_and_replayed_from_then_on(
    monkeypatch: pytest.MonkeyPatch, worth: None
) -> None:
    recorder, target = recording(monkeypatch), classifier()
    with frozen(target.module):
        passes = Replays(target)
        for count in (6, 6, 6, 6, 5, 6, 6, 5):
            x = images(count)
            assert torch.equal(passes(x), target(x))
    assert recorder.recorded == [6]
    assert recorder.replays == 3  # two, and the one that is compared


def test_passes_without_gradients_and_those_that_are_not_worth_it_are_the_target_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, target = recording(monkeypatch), classifier()
    monkeypatch.setattr(cuda_graphs, "_timed", lambda target, x: (target(x).detach(), False))
    with frozen(target.module):
        passes = Replays(target)
        for _ in range(8):
            passes(images(3))
            passes(images(3).detach())
    assert recorder.recorded == []


def test_what_answers_otherwise_when_it_is_replayed_is_never_replayed_again(
    monkeypatch: pytest.MonkeyPatch, worth: None
) -> None:
    recorder, target = recording(monkeypatch, lambda outputs: outputs + 1), classifier()
    with frozen(target.module):
        passes = Replays(target)
        for count in (6, 5, 4) * 6:
            x = images(count)
            assert torch.equal(passes(x), target(x))
    assert len(recorder.recorded) == 1


def test_what_cannot_be_recorded_goes_on_as_it_is(monkeypatch: pytest.MonkeyPatch, worth: None) -> None:
    def refuse(outputs: Tensor) -> Tensor:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    recorder, target = recording(monkeypatch, refuse), classifier()
    with frozen(target.module):
        passes = Replays(target)
        for _ in range(10):
            assert torch.equal(passes(images(6)), target(images(6)))
    assert len(recorder.recorded) == 1


class OfSomebodys(nn.Sequential):
    """A class that is not known: it may do anything in Python."""


def hooked() -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    network[1].register_forward_hook(lambda module, inputs, outputs: None)
    return network


@pytest.mark.parametrize(
    ("module", "fit"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), True),
        (OfSomebodys(nn.Flatten(), nn.Linear(64, 10)), False),
        (nn.Sequential(OfSomebodys(nn.Flatten()), nn.Linear(64, 10)), False),
        (hooked(), False),
    ],
    ids=["known", "somebody's", "somebody's within", "hooked"],
)
def test_only_known_layers_without_hooks_are_replayed_and_only_on_cuda(
    monkeypatch: pytest.MonkeyPatch, module: nn.Module, fit: bool
) -> None:
    target = classifier(module)
    assert replayed(target, images(2)) is target
    monkeypatch.setattr(cuda_graphs, "_on_cuda", lambda x: True)
    assert isinstance(replayed(target, images(2)), Replays) == fit
    assert isinstance(replayed(SplitTarget(target, 2), images(2)), Replays) == fit
    assert not isinstance(replayed(target.in_precision("bf16"), images(2)), Replays)
    assert not isinstance(replayed(CountedTarget(target), images(2)), Replays)


@pytest.mark.parametrize("attack", ["pgd", "apgd-ce", "apgd-t", "ddn", "cw-l2"])
def test_an_attack_finds_the_same_with_replays(monkeypatch: pytest.MonkeyPatch, worth: None, attack: str) -> None:
    """Each pass is the target's own here, so to the bit; counts of passes too."""
    target, norm = classifier(), "l2" if attack in ("ddn", "cw-l2") else "linf"
    x = images(8).detach()
    y = target(x).argmax(1)
    plugin = plugins.load("attacks", attack)
    found = []
    for passes in (lambda target, x: target, lambda target, x: Replays(target)):
        for module in ("ascent", "minimum_norm.nearest"):
            monkeypatch.setattr(f"robustkd.attacks.image.engine.{module}.replayed", passes)
        recorder = recording(monkeypatch)
        threat = ThreatModel(norm, 0.05)
        batch = Batch(x, y, torch.arange(8))
        found.append(plugin(plugin.Params()).run(target, batch, threat, SampleRng(0, batch.index)))
    assert recorder.replays > 0
    once, again = found
    assert torch.equal(once.adversarial, again.adversarial)
    assert torch.equal(once.success, again.success)
    assert torch.equal(once.forwards, again.forwards)


@pytest.mark.parametrize("attack", ["pgd", "apgd-ce", pytest.param("autoattack", marks=pytest.mark.slow), "cw-l2"])
def test_attacks_from_python_are_replayed(monkeypatch: pytest.MonkeyPatch, worth: None, attack: str) -> None:
    monkeypatch.setattr(cuda_graphs, "_on_cuda", lambda x: True)
    recorder, model, x = recording(monkeypatch), classifier().module, images(6).detach()
    robustkd.attack(attack, model, x, model(x).argmax(1), norm="l2", eps=0.1)
    assert recorder.replays > 0


@with_cuda
@pytest.mark.parametrize("model", ["tiny-cnn", "resnet20"])
def test_on_cuda_a_recorded_pass_is_the_network_s(model: str) -> None:
    shape = (1, 8, 8) if model == "tiny-cnn" else (3, 32, 32)
    torch.manual_seed(0)
    target = ClassifierTarget.from_model(model, input_shape=shape, num_classes=10).to("cuda")
    x = torch.rand(16, *shape, device="cuda")
    with frozen(target.module):
        passes: Any = replayed(target, x)
        assert isinstance(passes, Replays)
        for _ in range(20):
            leaf, same = x.clone().requires_grad_(), x.clone().requires_grad_()
            outputs, expected = passes(leaf), target(same)
            weights = torch.randn_like(outputs)
            (gradient,), (right,) = torch.autograd.grad(outputs, leaf, weights), torch.autograd.grad(expected, same, weights)
            assert torch.allclose(outputs, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
            assert torch.allclose(gradient, right, rtol=1e-3, atol=1e-4 * right.abs().max().item())
            x = (x + 0.01 * gradient.sign()).clamp(0, 1)


@with_cuda
def test_on_cuda_an_attack_breaks_as_many_images_as_on_the_cpu() -> None:
    target, x = classifier(), images(60).detach()
    y = target(x).argmax(1)
    on_cpu = robustkd.attack("apgd-ce", target.module, x, y, eps=0.1)
    on_cuda = robustkd.attack("apgd-ce", target.module.cuda(), x, y, eps=0.1)
    assert abs(int(on_cpu.success.sum()) - int(on_cuda.success.sum())) <= 1
