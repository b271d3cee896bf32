"""Whatever is handed to ``robustkd.attack`` and ``robustkd.evaluate``: the right number, or one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import robustkd
from robustkd import plugins
from robustkd.contracts import DataError, PluginError, TargetError, UsageError


def network() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    generator = torch.Generator().manual_seed(0)
    for weight in net.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) / 4
    return net


NET = network()
X = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))
Y = NET(X).argmax(1)
GOALS = (Y + 1) % 3
EYE = torch.eye(3)
SENTENCES = (DataError, PluginError, TargetError, UsageError)
PGD = plugins.make("attacks", {"kind": "pgd"})

RIGHT: dict[str, dict[str, Any]] = {
    "goals of NumPy": {"goals": GOALS.numpy()},
    "goals in a list": {"goals": GOALS.tolist()},
    "goals backwards in memory": {"goals": GOALS.flip(0).numpy()[::-1]},
    "goals of 32 bits": {"goals": GOALS.int()},
    "goals of bytes": {"goals": GOALS.to(torch.uint8)},
    "labels in a list": {"y": Y.tolist()},
    "labels of 16 bits": {"y": Y.numpy().astype(np.uint16)},
    "images backwards in memory": {"x": X.flip(2).numpy()[:, :, ::-1]},
    "labels backwards in memory": {"y": Y.flip(0).numpy()[::-1]},
    "images in lists": {"x": X.tolist()},
    "images in a list": {"x": list(X)},
    "images of double precision": {"x": X.double().numpy()},
    "eps for each": {"eps": [0.1] * 8},
    "eps as a fraction": {"eps": "1/10"},
    "attack as an object": {"attack": PGD},
    "attack in a mapping": {"attack": {"kind": "pgd"}},
}
WRONG: dict[str, dict[str, Any]] = {
    "goals that are the labels": {"goals": Y},
    "goals of which some are the labels": {"goals": torch.where(torch.arange(8) < 2, Y, GOALS)},
    "one goal": {"goals": 1},
    "a goal without dimension": {"goals": torch.tensor(1)},
    "goals one-hot": {"goals": EYE[GOALS]},
    "goals one-hot in integers": {"goals": EYE.long()[GOALS]},
    "goals that are floats": {"goals": GOALS.float()},
    "goals that are truth values": {"goals": GOALS > 0},
    "goals below 0": {"goals": GOALS * 0 - 1},
    "goals from K on": {"goals": GOALS * 0 + 3},
    "too few goals": {"goals": GOALS[:4]},
    "too many goals": {"goals": torch.cat([GOALS, GOALS])},
    "goals of strings": {"goals": ["cat"] * 8},
    "goals of objects": {"goals": np.array([None] * 8)},
    "a loader": {"x": DataLoader(TensorDataset(X, Y))},
    "no images": {"x": X[:0], "y": Y[:0]},
    "nothing": {"x": None},
    "one number": {"x": torch.tensor(0.5)},
    "images of objects": {"x": np.array([None] * 8)},
    "images of bytes": {"x": (X * 255).to(torch.uint8)},
    "images of nan": {"x": X * torch.nan},
    "no labels": {"y": None},
    "labels of strings": {"y": ["cat"] * 8},
    "labels that are floats": {"y": Y.float()},
    "labels one-hot": {"y": EYE[Y]},
    "labels in a column": {"y": Y[:, None]},
    "too few labels": {"y": Y[:3]},
    "labels below 0": {"y": Y * 0 - 1},
    "eps in letters": {"eps": "small"},
    "eps of letters": {"eps": ["a"] * 8},
    "eps of nan": {"eps": float("nan")},
    "eps below 0": {"eps": -0.1},
    "eps of 8": {"eps": 8},
    "too few eps": {"eps": [0.1, 0.1]},
    "no norm": {"norm": None},
    "no seed": {"seed": None},
    "a seed that is too large": {"seed": 2**70},
    "batches of 0": {"batch_size": 0},
    "batches of -1": {"batch_size": -1},
    "batches of words": {"batch_size": "all"},
    "another precision": {"precision": "half"},
    "models without names": {"models": 3},
    "fit_data that is no pair": {"fit_data": 3},
    "constants of nobody": {"normalise": "nobody"},
    "no attack": {"attack": None},
    "a class of attacks": {"attack": type(PGD)},
    "a function of one argument": {"attack": lambda x: x},
    "a number for an attack": {"attack": 3},
    "an attack without kind": {"attack": {}},
    "a model that is a function": {"model": lambda x: x},
    "no model": {"model": None},
}


def called(*, attack: Any = "pgd", model: Any = NET, x: Any = X, y: Any = Y, eps: Any = 0.1, **more: Any) -> np.ndarray:
    return robustkd.attack(attack, model, x, y, eps=eps, **more).success


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_meant_is_taken(name: str) -> None:
    given = RIGHT[name]
    targeted = {"goals": GOALS} if "goals" in given else {}
    assert (called(**given) == called(**targeted)).all()


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_meant_gets_a_sentence(name: str) -> None:
    given = dict(WRONG[name])
    with pytest.raises(SENTENCES):
        called(**given)
    attacks, model, x, y = (given.pop(key, usual) for key, usual in (("attack", "pgd"), ("model", NET), ("x", X), ("y", Y)))
    with pytest.raises(SENTENCES):
        # None alone means the usual attacks.
        robustkd.evaluate(model, x, y, attacks=[None] if attacks is None else attacks, level="none", **{"eps": 0.1, **given})


def test_a_model_that_draws_gives_the_same_number_at_each_call() -> None:
    class Drawing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            noise = np.random.randn() if len(x) % 2 else float(torch.randn(()))
            return NET(x) + noise * torch.randn(len(x), 3)

    found = [robustkd.attack("pgd", Drawing(), X, Y, eps=0.1, seed=3).outcome.after for _ in range(3)]
    assert all((each == found[0]).all() for each in found)
