from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustkd.contracts import Arrays, FitContext, Target, ThreatModel
from robustkd.data import Splits, load_splits
from robustkd.data.splits import SplitParams
from robustkd.defenses.training import Minibatch, Recipe, train
from robustkd.targets import ClassifierTarget

EPS = 0.15


class DrawsAndCounts(nn.Module):
    """Small, with everything that makes resuming hard: BatchNorm's running state and draws from the global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(96, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


def tiny_target(seed: int = 0) -> ClassifierTarget:
    torch.manual_seed(seed)
    return ClassifierTarget(DrawsAndCounts(), num_classes=10, input_shape=(1, 8, 8))


@pytest.fixture(scope="session")
def digits() -> Splits:
    return load_splits("digits", {}, SplitParams(train=360, test=200, validation=60))


@pytest.fixture
def context(digits: Splits, tmp_path: Path) -> Callable[..., FitContext]:
    """``context(log=.., targets=.., ..)``: digits, a folder of its own unless ``folder`` names one."""

    def make(*, folder: str = "training", train: Arrays | None = None, **changes: object) -> FitContext:
        assert digits.train is not None
        assert digits.validation is not None
        given: dict[str, object] = {
            "train": digits.train if train is None else train,
            "validation": digits.validation,
            "input_shape": digits.input_shape,
            "num_classes": digits.num_classes,
            "threat": ThreatModel(eps=EPS),
            "seed": 0,
            "device": torch.device("cpu"),
            "checkpoints": tmp_path / folder,
        }
        return FitContext(**(given | changes))  # type: ignore[arg-type]

    return make


@pytest.fixture
def minibatch(digits: Splits) -> Minibatch:
    """32 digits."""
    return Minibatch(
        torch.from_numpy(digits.test.unit()[:32]), torch.from_numpy(digits.test.labels[:32]), torch.arange(32), seed=3, epoch=1
    )


@pytest.fixture
def tiny() -> Callable[..., ClassifierTarget]:
    return tiny_target


@pytest.fixture
def linear() -> Callable[..., ClassifierTarget]:
    """``linear(seed, scale)``: a network whose gradients can be written down."""

    def make(seed: int, scale: float = 1.0) -> ClassifierTarget:
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        with torch.no_grad():
            module[1].weight.mul_(scale)
        return ClassifierTarget(module, num_classes=10, input_shape=(1, 8, 8))

    return make


@pytest.fixture
def softmax() -> Callable[..., np.ndarray]:
    """``softmax(logits, temperature)`` by numpy, in double precision."""

    def table(logits: Tensor, temperature: float = 1.0) -> np.ndarray:
        powers = np.exp(logits.detach().double().numpy() / temperature)
        return powers / powers.sum(1, keepdims=True)

    return table


@pytest.fixture
def same_weights() -> Callable[[Target, Target], bool]:
    def same(one: Target, other: Target) -> bool:
        mine, theirs = one.module.state_dict(), other.module.state_dict()
        return set(mine) == set(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)

    return same


@pytest.fixture
def survives_kills(monkeypatch: pytest.MonkeyPatch, same_weights: Callable[[Target, Target], bool]) -> Callable[..., bool]:
    """``survives_kills(fit, recipe, after)``: whether ``fit("killed")``, killed each time after so many more steps of
    ``recipe``, ends with the weights of ``fit("whole")``.
    """

    def survives(fit: Callable[[str], Target], recipe: type[Recipe], after: Sequence[int]) -> bool:
        monkeypatch.setitem(train.__kwdefaults__, "checkpoint_seconds", 0)
        whole, loss, left = fit("whole"), recipe.loss, 0

        def dying(self: Recipe, target: ClassifierTarget, batch: Minibatch) -> tuple[Tensor, dict[str, Tensor]]:
            nonlocal left
            if left == 0:
                raise SystemExit("killed")
            left -= 1
            return loss(self, target, batch)

        with monkeypatch.context() as patched:
            patched.setattr(recipe, "loss", dying)
            for left in after:  # noqa: B007 (counted down above)
                with pytest.raises(SystemExit):
                    fit("killed")
        return same_weights(whole, fit("killed"))

    return survives


class Curve:
    """A log that keeps what it is told, and stands for a kill (``SystemExit``) in the epoch ``until``."""

    def __init__(self, until: int | None = None) -> None:
        self.until = until
        self.epochs: list[int] = []
        self.metrics: list[dict[str, float]] = []

    def __call__(self, epoch: int, metrics: Mapping[str, float]) -> None:
        if epoch == self.until:
            raise SystemExit("killed")
        self.epochs.append(epoch)
        self.metrics.append(dict(metrics))

    def numbers(self) -> list[dict[str, float]]:
        """Everything but the time that it took."""
        return [{name: value for name, value in row.items() if not name.endswith("seconds")} for row in self.metrics]


@pytest.fixture
def curve() -> type[Curve]:
    return Curve
