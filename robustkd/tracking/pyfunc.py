"""What ``mlflow.pyfunc.load_model`` calls to read a logged target. The function's name is MLflow's.

A target whose card names code of the user's own is refused, since MLflow has no way to say that it may run (its ``model_config``
comes with the model): download it and call ``load_target(folder, code=[..])``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustkd.contracts import Target
from robustkd.contracts.target import of_kind
from robustkd.targets import load_target


class ServedTarget:
    """A target behind MLflow's ``predict``."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def predict(self, inputs: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """(B, *shape) float32 inside the target's bounds -> its outputs; for a classifier (B, K) logits."""
        with torch.inference_mode():
            outputs: np.ndarray = self.target(torch.as_tensor(np.asarray(inputs, dtype=np.float32))).numpy()
        return outputs


def _load_pyfunc(path: str) -> ServedTarget:
    return ServedTarget(of_kind(load_target(Path(path)), Path(path).name, Target))
