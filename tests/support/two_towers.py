"""Two towers whose numbers can be written down: a linear image tower and given class vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from robustkd.plugin_kit import fixtures
from robustkd.targets import ClassifierTarget
from robustkd.targets.two_tower import ImageTower, TwoTowerTarget


def towers(seed: int = 0, *, dimensions: int = 4, scale: float = 5.0, vectors: Tensor | None = None) -> TwoTowerTarget:
    """A ``tiny-cnn`` on digits with as many outputs as dimensions, beside ten random class vectors."""
    torch.manual_seed(seed)
    network = ClassifierTarget.from_model("tiny-cnn", {}, input_shape=(1, 8, 8), num_classes=dimensions)
    given = torch.randn(10, dimensions) if vectors is None else vectors
    target = TwoTowerTarget(network.module, given, tower=ImageTower(network=network.card()), input_shape=(1, 8, 8), scale=scale)
    target.module.eval()
    return target


def images(count: int = 10) -> Tensor:
    """(count, 1, 8, 8) digits."""
    return torch.from_numpy(fixtures.digits().test.unit()[:count])


def fitted(kind: str, given: dict[str, Any], **context: Any) -> Any:
    """The target of a defense on the conformance suite's digits."""
    from robustkd import plugins

    settings = {"kind": kind, "epochs": 1, "batch_size": 32, **given}
    fields = plugins.load("defenses", kind).Params.model_fields
    with fixtures.context(**context) as made:
        return plugins.make("defenses", {key: value for key, value in settings.items() if key == "kind" or key in fields}).fit(
            made
        )
