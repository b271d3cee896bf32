"""Networks that merge, cache, preprocess in place or compute in double precision, beside a plain twin of the same function."""

from __future__ import annotations

import copy
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import robustkd
from robustkd import plugins
from robustkd.contracts import TargetError
from robustkd.targets.checkpoints import load_weights
from support.families import brief

EPS = 0.1


def plain() -> nn.Module:
    """A small convolutional network of (N, 1, 6, 6) images and three classes, the same at each call."""
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    for weight in net.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * weight.shape[-1] ** -0.5
    return net


@pytest.fixture(scope="module")
def samples() -> tuple[Tensor, Tensor]:
    x = torch.rand(24, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    return x, plain()(x).argmax(1)


def pgd(net: nn.Module, x: Tensor, y: Tensor, **more: object) -> np.ndarray:
    return robustkd.attack("pgd", net, x, y, eps=EPS, steps=5, **more).success


class Lora(nn.Module):
    """A linear layer that merges its update into the weight in ``train(False)``, as loralib does."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(base.weight.detach().clone(), requires_grad=False), base.bias
        self.a, self.b = nn.Parameter(torch.ones(2, 64) / 8), nn.Parameter(torch.ones(3, 2) / 8)
        self.merged = False

    def train(self, mode: bool = True) -> Lora:
        super().train(mode)
        if self.merged is mode:
            self.weight.data += (-1 if mode else 1) * self.b.detach() @ self.a.detach()
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        update = 0 if self.merged else x @ self.a.T @ self.b.T
        return nn.functional.linear(x, self.weight, self.bias) + update


@pytest.mark.parametrize("call", [robustkd.attack, robustkd.evaluate, robustkd.audit])
def test_a_network_that_merges_its_weights_is_trained_on(call: Callable[..., object], samples: tuple[Tensor, Tensor]) -> None:
    net = plain()
    net[3] = Lora(net[3])
    twin = copy.deepcopy(net)
    if call is robustkd.attack:
        pgd(net, *samples)
    else:
        call(net, *samples, attacks="fgsm", eps=EPS, level="none")
    for each in (net, twin):
        nn.functional.cross_entropy(each(samples[0]), samples[1]).backward()
    assert net.training
    for mine, its in zip(net.parameters(), twin.parameters(), strict=True):
        assert (mine.grad is None) == (its.grad is None)
        assert mine.grad is None or torch.allclose(mine.grad, its.grad, atol=1e-6)


def test_two_threads_attack_one_network(samples: tuple[Tensor, Tensor]) -> None:
    net, found = plain(), {}

    def run(steps: int) -> None:
        found[steps] = robustkd.attack("pgd", net, *samples, eps=EPS, steps=steps).success

    threads = [threading.Thread(target=run, args=(steps,)) for steps in (30, 10, 20, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert net.training
    assert all(weight.requires_grad for weight in net.parameters())
    for steps, success in found.items():
        assert (success == robustkd.attack("pgd", plain(), *samples, eps=EPS, steps=steps).success).all()
    assert sorted(found) == [5, 10, 20, 30]


@pytest.fixture
def double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "name", ["pgd", pytest.param("autoattack", marks=pytest.mark.slow), "torchattacks:PGD", "torchattacks:Square"]
)
def test_the_callers_random_numbers_go_on(name: str, samples: tuple[Tensor, Tensor]) -> None:
    class Drawing(nn.Module):
        """Draws from all three generators, and changes the result by none."""

        def __init__(self) -> None:
            super().__init__()
            self.net = plain()

        def forward(self, x: Tensor) -> Tensor:
            torch.rand(1), np.random.rand(), random.random()
            return self.net(x)

    if name.startswith("torchattacks"):
        pytest.importorskip("torchattacks")
    x, y = samples[0][:4], samples[1][:4]

    def draws() -> tuple[float, ...]:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    def seeded() -> None:
        torch.manual_seed(5), np.random.seed(5), random.seed(5)

    net = Drawing()
    seeded()
    expected = draws()
    plugins.refresh()
    seeded()
    filters = list(warnings.filters)
    robustkd.attack(name, net, x, y, eps=EPS)
    assert draws() == expected
    assert warnings.filters == filters
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("eps", [8 / 255, 0.05, 0.1])
def test_budgets_in_double_precision(kind: Callable[..., object], eps: float, samples: tuple[Tensor, Tensor]) -> None:
    each = kind(np.full(24, eps))
    found = robustkd.attack("pgd", plain(), *samples, eps=each, steps=5)
    assert (found.success == robustkd.attack("pgd", plain(), *samples, eps=eps, steps=5).success).all()


class Grid(nn.Module):
    """Keeps a grid for the batch's shape in a buffer; it adds the same to all logits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("grid", torch.zeros(0, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if len(self.grid) != len(x):
            self.grid = torch.arange(len(x), device=x.device, dtype=x.dtype)[:, None]
        return self.net(x) + self.grid


class Counting(nn.Module):
    """Counts its calls in a buffer, in place."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x)


class InPlace(nn.Module):
    """Scales its input where it lies, and takes it back for the network inside."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.sub_(0.5).div_(0.25) * 0.25 + 0.5)


class OddBuffers(nn.Module):
    """Holds what can be neither hashed as bytes nor compared."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("sparse", torch.eye(3).to_sparse())
        self.register_buffer("complex", torch.ones(2, dtype=torch.complex64))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("nan", torch.full((2,), torch.nan))
        self.register_buffer("meta", torch.zeros(2, device="meta"))
        self.register_buffer("quantised", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))
        self.first = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class OwnTrain(nn.Module):
    """Its ``train`` returns nothing, and its mode counts."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.open = net, True

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        self.training, self.open = mode, mode
        self.net.train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + (torch.rand(len(x), 3) * 9 if self.open else 0)


class Checkpointing(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(self.net, x, use_reentrant=False)


class Hooked(nn.Module):
    """Keeps what passes in lists, as feature extractors do."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.seen = net, []
        net.register_forward_hook(lambda module, given, made: self.seen.append(made))
        net.register_forward_pre_hook(lambda module, given: None)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Wrapped(nn.Module):
    """Calls its part ``module``, as DataParallel does, and answers in double precision."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.module = net

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x).double()


PARTS = (Grid, Counting, InPlace, OddBuffers, OwnTrain, Checkpointing, Hooked, Wrapped)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_alone_has_the_numbers_of_its_plain_twin(part: type[nn.Module], samples: tuple[Tensor, Tensor]) -> None:
    beside_its_plain_twin([part], samples)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(parts=st.lists(st.sampled_from(PARTS), min_size=2, max_size=4))
def test_a_network_of_such_parts_has_the_numbers_of_its_plain_twin(
    parts: list[type[nn.Module]], samples: tuple[Tensor, Tensor]
) -> None:
    beside_its_plain_twin(parts, samples)


def beside_its_plain_twin(parts: list[type[nn.Module]], samples: tuple[Tensor, Tensor]) -> None:
    x, y = samples
    net = plain()
    for part in parts:
        net = part(net)
    net.train()
    given = x.clone()
    modes = [module.training for module in net.modules()]
    for name in ("pgd", "fmn"):
        mine = robustkd.attack(name, net, given, y, eps=EPS, steps=5, batch_size=10).success
        its = robustkd.attack(name, plain(), x, y, eps=EPS, steps=5).success
        assert (mine == its).all(), name
    assert torch.equal(given, x)
    assert [module.training for module in net.modules()] == modes
    report = robustkd.audit(net, given, y, attacks="fgsm", eps=EPS, level="none")
    assert report.robust_accuracy == robustkd.audit(plain(), x, y, attacks="fgsm", eps=EPS, level="none").robust_accuracy
    assert torch.equal(given, x)


def test_an_attack_that_changes_an_output_is_still_told() -> None:
    from robustkd.contracts import AttackError

    class Writing(type(plugins.make("attacks", {"kind": "fgsm"}))):  # type: ignore[misc]
        def run(self, target, batch, threat, rng):  # type: ignore[no-untyped-def]
            target.module.get_buffer("shift").add_(torch.tensor([1.0, 0.0, 0.0]))
            return super().run(target, batch, threat, rng)

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = plain()
            self.register_buffer("shift", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + self.shift

    x = torch.rand(4, 1, 6, 6)
    with pytest.raises(AttackError, match="left the model changed"):
        robustkd.attack(Writing(), Shifted(), x, plain()(x).argmax(1))


IMAGE_ATTACKS = [
    *("pgd", "fab", "fmn", "deepfool", "ddn", "cw", "ead", "apgd-ce", "corruption"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("square", "autoattack")),
]


@pytest.mark.parametrize("name", IMAGE_ATTACKS)
def test_a_network_in_double_precision(name: str, samples: tuple[Tensor, Tensor]) -> None:
    if name not in plugins.names("attacks"):
        pytest.skip("not here")
    norm = "l1" if name == "ead" else "l2" if name in ("cw", "corruption") else "linf"
    eps = {"l1": 1.0, "l2": 0.5, "linf": EPS}[norm]
    x, y = samples[0][:12], samples[1][:12]
    mine = robustkd.attack(name, plain().double(), x, y, norm=norm, eps=eps, **brief(name))
    its = robustkd.attack(name, plain(), x, y, norm=norm, eps=eps, **brief(name))
    assert abs(mine.robust_accuracy - its.robust_accuracy) <= 1 / 12


@pytest.mark.usefixtures("double_by_default")
@pytest.mark.parametrize("name", IMAGE_ATTACKS)
def test_double_precision_by_default(name: str) -> None:
    if name not in plugins.names("attacks"):
        pytest.skip("not here")
    norm = "l1" if name == "ead" else "l2" if name in ("cw", "corruption") else "linf"
    eps = {"l1": 1.0, "l2": 0.5, "linf": EPS}[norm]
    net = plain().float()
    x = torch.rand(12, 1, 6, 6, dtype=torch.float32, generator=torch.Generator().manual_seed(1))
    y = net(x).argmax(1)
    mine = robustkd.attack(name, net, x, y, norm=norm, eps=eps, **brief(name))
    torch.set_default_dtype(torch.float32)
    assert (mine.success == robustkd.attack(name, net, x, y, norm=norm, eps=eps, **brief(name)).success).all()


def test_a_checkpoint_of_the_former_weight_norm(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3)))
    torch.save(written.state_dict(), tmp_path / "old.pt")
    torch.save({f"module.{name}": value for name, value in written.state_dict().items()}, tmp_path / "parallel.pt")
    for file in ("old.pt", "parallel.pt"):
        net = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)))
        load_weights(net, tmp_path / file)
        x = torch.rand(2, 4)
        assert torch.allclose(net(x), written(x), atol=1e-6)


def test_a_network_with_a_part_called_module(tmp_path: Path) -> None:
    from torch.optim.swa_utils import AveragedModel

    torch.save(AveragedModel(nn.Linear(2, 2)).state_dict(), tmp_path / "averaged.pt")
    load_weights(AveragedModel(nn.Linear(2, 2)), tmp_path / "averaged.pt")
    torch.save(Wrapped(nn.Linear(2, 2)).state_dict(), tmp_path / "wrapped.pt")
    load_weights(Wrapped(nn.Linear(2, 2)), tmp_path / "wrapped.pt")
    load_weights(nn.Linear(2, 2), tmp_path / "wrapped.pt")  # as DataParallel writes them
    with pytest.raises(TargetError, match="differs in shape at weight"):
        load_weights(nn.Linear(3, 2), tmp_path / "wrapped.pt")
    with pytest.raises(TargetError, match=r"lacks .*other"):
        load_weights(nn.ModuleDict({"other": nn.Linear(2, 2), "more": nn.Linear(2, 2)}), tmp_path / "wrapped.pt")
