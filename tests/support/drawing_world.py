"""The smallest world with text-to-image models that are trained: captioned digits, and a model of a few thousand weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from robustkd import plugins
from robustkd.contracts import BaseTarget, FitContext, ThreatModel
from robustkd.data import SplitParams, Splits, load_splits
from robustkd.targets.text_to_image import TextToImageTarget

SMALL: dict[str, Any] = {"channels": (8, 16), "text_width": 16, "text_layers": 1, "timesteps": 40, "sampling_steps": 3}


@cache
def captions() -> Splits:
    """Ten digits, five of them forbidden."""
    return load_splits("digit-captions", {"per_concept": 12}, SplitParams(validation=20))


def context(
    folder: Path | None = None, log: Callable[[int, Mapping[str, float]], None] | None = None, **targets: BaseTarget
) -> FitContext[Any]:
    """What a defense of this world is given."""
    data = captions()
    return FitContext(
        train=data.train,
        validation=data.validation,
        input_shape=data.input_shape,
        num_classes=data.num_classes,
        threat=ThreatModel.by_prompt(5),
        seed=0,
        device=torch.device("cpu"),
        checkpoints=folder or Path(tempfile.mkdtemp()),
        targets=targets,
        log=log or (lambda step, metrics: None),
    )


def fitted(
    spec: Mapping[str, Any],
    folder: Path | None = None,
    log: Callable[[int, Mapping[str, float]], None] | None = None,
    **targets: BaseTarget,
) -> Any:
    """The target of a defense; ``targets`` are the others that its parameters name."""
    return plugins.make("defenses", dict(spec)).fit(context(folder, log, **targets))


@cache
def base() -> TextToImageTarget:
    """A model that was hardly trained; it is not to be changed."""
    made: TextToImageTarget = fitted(
        {"kind": "text-to-image-pretrain", "steps": 4, "batch_size": 8, "text": {"steps": 4}, **SMALL}
    )
    return made


def asked(target: TextToImageTarget, *texts: str) -> Any:
    """What the UNet is told of some prompts."""
    with torch.no_grad():
        return target.encode(target.tokenize(texts))
