"""A folder of diffusers as the target that draws with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from robustkd import plugins
from robustkd.contracts import FitContext, ThreatModel
from robustkd.targets.text_to_image import TextToImageTarget


def loaded(folder: Path, **params: Any) -> TextToImageTarget:
    """The target of ``text-to-image`` in 3 steps; ``params`` are further ones of the defense."""
    context = FitContext(None, None, (), 2, ThreatModel.by_prompt(1), 0, torch.device("cpu"), folder)
    target = plugins.make("defenses", {"kind": "text-to-image", "folder": folder, "steps": 3, **params}).fit(context)
    assert isinstance(target, TextToImageTarget)
    return target
