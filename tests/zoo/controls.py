"""Networks that hide their weakness, honest ones, and attacks with a bug: what the checks are judged on.

Every network maps (B, 1, 8, 8) images in [0, 1] to (B, 10) logits. Most positive controls put something before or behind
one plainly trained CNN (``Zoo.plain``), so their robustness is that CNN's, which is next to none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkd import plugins
from robustkd.contracts import Attack, AttackResult, FitContext, Target, ThreatModel
from robustkd.data import SplitParams, Splits, load_splits
from robustkd.targets import ClassifierTarget, EnsembleTarget

EPS = 0.1
AUDITED = 150
"""Test samples that each audit sees."""


# --- stages before and behind a network


class Quantise(nn.Module):
    """Five grey levels; rounding has a gradient of zero."""

    def forward(self, x: Tensor) -> Tensor:
        return (4 * x).round() / 4


class Jpeg(nn.Module):
    """JPEG's lossy part on one 8x8 block: quantised cosine coefficients."""

    def __init__(self, step: float = 0.4) -> None:
        super().__init__()
        k, n = torch.arange(8.0).view(8, 1), torch.arange(8.0)
        basis = torch.cos(math.pi * (2 * n + 1) * k / 16) * math.sqrt(2 / 8)
        basis[0] /= math.sqrt(2)
        self.register_buffer("basis", basis)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        coefficients = ((self.basis @ x @ self.basis.T) / self.step).round() * self.step
        return (self.basis.T @ coefficients @ self.basis).clamp(0, 1)


class ResizeAndPad(nn.Module):
    """Xie et al. 2018: shrunk to a random size and put at a random place."""

    def forward(self, x: Tensor) -> Tensor:
        size = int(torch.randint(6, 9, ()))
        small = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
        left, top = int(torch.randint(0, 9 - size, ())), int(torch.randint(0, 9 - size, ()))
        return F.pad(small, (left, 8 - size - left, top, 8 - size - top))


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


class Dead(torch.autograd.Function):
    """The identity, with a gradient of zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)


class KillGradient(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Dead.apply(x)


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, z: Tensor) -> Tensor:
        return self.factor * z


class StochasticPruning(nn.Module):
    """Dhillon et al. 2018, simplified: activations survive with a probability that grows with their size."""

    def forward(self, h: Tensor) -> Tensor:
        keep = (h.abs() / h.abs().mean(1, keepdim=True).clamp_min(1e-6)).clamp(0, 1) * 0.9
        return torch.where(torch.rand_like(h) < keep, h / keep.clamp_min(0.1), 0)


class WinnersTakeAll(nn.Module):
    """Xiao et al. 2020: only the largest tenth of a layer's activations is let through."""

    def forward(self, h: Tensor) -> Tensor:
        flat = h.flatten(1)
        threshold = flat.topk(max(1, flat.shape[1] // 10), dim=1).values[:, -1:]
        return torch.where(flat >= threshold, flat, 0).view_as(h)


class OneHot(nn.Module):
    """Buckman et al. 2018: each pixel as one of 8 levels."""

    def forward(self, x: Tensor) -> Tensor:
        levels = (x * 8).floor().clamp(0, 7).long().flatten(1)
        return F.one_hot(levels, 8).to(x.dtype).flatten(1)


class Thermometer(nn.Module):
    """Buckman et al. 2018: each pixel as the levels that it exceeds."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1).unsqueeze(2) > torch.arange(8, device=x.device) / 8).to(x.dtype).flatten(1)


class Detector(nn.Module):
    """Off the principal subspace of the training images it answers with a constant for the class it would have said before."""

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        super().__init__()
        flat = images.flatten(1)
        self.net = net
        self.register_buffer("mean", flat.mean(0))
        self.register_buffer("axes", torch.linalg.svd(flat - flat.mean(0), full_matrices=False).Vh[:20])
        away = (self._projected(images) - images).flatten(1).norm(dim=1)
        self.limit = float(away.quantile(0.9))

    def _projected(self, x: Tensor) -> Tensor:
        return (((x.flatten(1) - self.mean) @ self.axes.T) @ self.axes + self.mean).view_as(x)

    def forward(self, x: Tensor) -> Tensor:
        clean = self._projected(x)
        off = (x - clean).flatten(1).norm(dim=1) > self.limit
        constant = 10 * F.one_hot(self.net(clean).argmax(1), 10).to(x.dtype)
        return torch.where(off.unsqueeze(1), constant, self.net(x))


class TrainingBatchNorm(nn.Module):
    """Normalises by the batch that it is asked about, whatever mode it is put in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias, training=True)


class TinyViT(nn.Module):
    """Sixteen 2x2 patches, two blocks of attention."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.places = nn.Parameter(0.02 * torch.randn(1, 16, width))
        block = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.blocks(tokens).mean(1))


def cnn(activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), activation(), nn.Conv2d(16, 32, 3, padding=1), activation(),
        nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


# --- attacks with a bug


class _Pgd(Attack):
    """PGD with restarts as one finds it in notebooks, with one line wrong."""

    sign, unit, clip, keep_best = 1.0, 1.0, True, True
    loss_family = "cross-entropy"  # type: ignore[assignment]

    def run(self, target: Target, batch: Any, threat: ThreatModel, rng: Any) -> AttackResult:
        eps, steps, x = self.unit * threat.eps, 22, batch.inputs
        low, high = (0, 1) if self.clip else (-9, 9)
        best, broken = x.clone(), target(x).argmax(1) != batch.labels
        for step in range(steps):
            if step % 7 == 0:
                point = (x + eps * rng.uniform(x.shape[1:], -1, 1)).clamp(low, high)
            point = point.detach().requires_grad_()
            with torch.enable_grad():
                logits = target(point)
                (gradient,) = torch.autograd.grad(F.cross_entropy(logits, batch.labels, reduction="sum"), point)
            now = logits.argmax(1) != batch.labels
            better = now & ~broken if self.keep_best else torch.ones_like(now)
            best = torch.where(better.view(-1, 1, 1, 1), point.detach(), best)
            broken = broken | now
            point = (x + (point.detach() + self.sign * eps / 4 * gradient.sign() - x).clamp(-eps, eps)).clamp(low, high)
        count = torch.full((len(x),), steps, dtype=torch.int64)
        return AttackResult(best, broken, count, count)


class WrongSign(_Pgd):
    sign = -1.0


class GreyLevels(_Pgd):
    """Takes eps for a number of grey levels: 0.1 becomes 25.5."""

    unit = 255.0


class NoClipping(_Pgd):
    clip = False


class LastPoint(_Pgd):
    keep_best = False


# --- the zoo


class Zoo:
    """The networks of one seed, trained when they are first asked for."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed, self._folder = seed, folder
        self.data: Splits = load_splits("digits", {}, SplitParams(train=1000, test=AUDITED, validation=100))
        assert self.data.train is not None
        self.x, self.y = torch.from_numpy(self.data.train.unit()), torch.from_numpy(self.data.train.labels).long()

    def trained(self, net: nn.Module, epochs: int = 25, penalty: float = 0.0, scale: float = 1.0) -> nn.Module:
        """Cross entropy, with ``penalty`` on the squared input gradient (Ross & Doshi-Velez 2018)."""
        optimiser = torch.optim.Adam(net.parameters(), 3e-3)
        net.train()
        for _ in range(epochs):
            for rows in torch.randperm(len(self.x)).split(100):
                x = self.x[rows].requires_grad_(penalty > 0)
                loss = F.cross_entropy(scale * net(x), self.y[rows])
                if penalty:
                    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
                    loss = loss + penalty * gradient.square().flatten(1).sum(1).mean() * len(rows)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return net.eval()

    def fresh(self, build: Callable[[], nn.Module], **how: Any) -> nn.Module:
        torch.manual_seed(self.seed)
        return self.trained(build(), **how)

    @cached_property
    def plain(self) -> nn.Module:
        return self.fresh(cnn)

    def defense(self, spec: dict[str, Any], **targets: Target) -> Target:
        """A defense of the platform's own, trained on the zoo's data."""
        assert self.data.train is not None
        assert self.data.validation is not None
        context = FitContext(
            train=self.data.train, validation=self.data.validation, input_shape=self.data.input_shape,
            num_classes=self.data.num_classes, threat=ThreatModel("linf", EPS), seed=self.seed, device=torch.device("cpu"),
            checkpoints=self._folder / f"{spec['kind']}-{self.seed}", targets=targets,
        )  # fmt: skip
        fitted: Target = plugins.make("defenses", spec).fit(context)
        return fitted

    @cached_property
    def standard(self) -> Target:
        return self.defense({"kind": "standard", **SMALL, "epochs": 15})

    @cached_property
    def robust(self) -> Target:
        return self.defense({"kind": "pgd-at", **SMALL, "epochs": 20, "inner": {"steps": 3, "step_size": 0.05}})


SMALL = {"model": "tiny-cnn", "model_params": {"width": 32}, "batch_size": 32, "lr": 0.05, "schedule": "cosine"}
CE = "pgd"
ATTACKS: tuple[Any, ...] = ("fgsm", CE, {"kind": "pgd", "loss": "margin"})


@dataclass(frozen=True)
class Control:
    """One animal of the zoo: how to make it, and the evaluation that is to be judged."""

    name: str
    kind: str
    build: Callable[[Zoo], nn.Module | Target]
    attacks: tuple[Any, ...] = ATTACKS


def before(stage: nn.Module) -> Callable[[Zoo], nn.Module]:
    return lambda zoo: nn.Sequential(stage, zoo.plain).eval()


def behind(stage: nn.Module) -> Callable[[Zoo], nn.Module]:
    return lambda zoo: nn.Sequential(zoo.plain, stage).eval()


def coded(code: Callable[[], nn.Module]) -> Callable[[Zoo], nn.Module]:
    return lambda zoo: zoo.fresh(lambda: nn.Sequential(code(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)))


def batch_norm(zoo: Zoo) -> nn.Module:
    return zoo.fresh(lambda: nn.Sequential(nn.Conv2d(1, 16, 3, stride=2, padding=1), TrainingBatchNorm(16), nn.ReLU(),
                                           nn.Flatten(), nn.Linear(256, 10)))  # fmt: skip


def pruned(zoo: Zoo) -> nn.Module:
    layers = list(zoo.plain)
    return nn.Sequential(*layers[:5], StochasticPruning(), *layers[5:]).eval()


def distilled(zoo: Zoo) -> Target:
    spec = {"kind": "defensive-distillation", "model": "tiny-cnn", "model_params": {"width": 32}, "temperature": 100}
    return zoo.defense({**spec, "epochs": 30, "batch_size": 64, "optimiser": "adam", "lr": 0.008, "schedule": "cosine"})


def student(zoo: Zoo) -> Target:
    spec = {"kind": "mtard", "teachers": {"clean": "standard", "robust": "robust"}, "student": "tiny-cnn"}
    spec |= {"student_params": {"width": 32}, "kl_reduction": "batch", "epochs": 20, "batch_size": 32, "lr": 0.2}
    return zoo.defense(
        {**spec, "schedule": "cosine", "inner": {"steps": 3, "step_size": 0.05}}, standard=zoo.standard, robust=zoo.robust
    )


def trades(zoo: Zoo) -> Target:
    return zoo.defense({"kind": "trades", **SMALL, "epochs": 20, "inner": {"steps": 3, "step_size": 0.05}})


def ensemble(zoo: Zoo) -> Target:
    torch.manual_seed(100 + zoo.seed)
    nets = [zoo.trained(cnn(), epochs=15) for _ in range(3)]
    return EnsembleTarget([ClassifierTarget(net, num_classes=10, input_shape=(1, 8, 8)) for net in nets])


POSITIVE = (
    Control("distilled at tau 100", "saturation", distilled),
    Control("logits x 1000", "saturation", behind(Scale(1e3))),
    Control("temperature 0.01", "saturation", behind(Scale(100))),
    Control("gradient penalty, saturated", "saturation", lambda zoo: zoo.fresh(cnn, penalty=1.0, scale=30.0)),
    Control("log-softmax head", "output", behind(nn.LogSoftmax(1))),
    Control("quantised input", "zero gradient", before(Quantise())),
    Control("one-hot input", "zero gradient", coded(OneHot)),
    Control("thermometer input", "zero gradient", coded(Thermometer)),
    Control("JPEG stage", "zero gradient", before(Jpeg())),
    Control("killed gradient", "zero gradient", before(KillGradient())),
    Control("detector head", "shattered gradient", lambda zoo: Detector(zoo.plain, zoo.x).eval()),
    Control("k winners take all", "shattered gradient", lambda zoo: zoo.fresh(lambda: cnn(WinnersTakeAll), epochs=30)),
    Control("resize and pad", "randomness", before(ResizeAndPad())),
    Control("additive noise", "randomness", before(Noise())),
    Control("stochastic pruning", "randomness", pruned),
    Control("BatchNorm in training mode", "inference", batch_norm),
    Control("attack: wrong sign", "attack", lambda zoo: zoo.plain, (WrongSign(),)),
    Control("attack: eps in grey levels", "attack", lambda zoo: zoo.plain, (GreyLevels(),)),
    Control("attack: no clipping", "attack", lambda zoo: zoo.plain, (NoClipping(),)),
    Control("attack: last point", "attack", lambda zoo: zoo.plain, (LastPoint(),)),
)

HONEST = (
    Control("standard", "honest", lambda zoo: zoo.standard),
    Control("PGD-AT", "honest", lambda zoo: zoo.robust),
    Control("TRADES", "honest", trades),
    Control("MTARD student", "honest", student),
    Control("plain ensemble", "honest", ensemble),
    Control("small ViT", "honest", lambda zoo: zoo.fresh(TinyViT, epochs=30)),
)
