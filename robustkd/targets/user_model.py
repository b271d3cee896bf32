"""A user's own classifier from what he has: a saved target, or code and its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustkd.contracts import BaseTarget, Code, UsageError
from robustkd.targets.checkpoints import load_weights
from robustkd.targets.code import call_by_reference
from robustkd.targets.files import load_target

if TYPE_CHECKING:
    from torch import nn


def load_model(
    model: str | Path,
    *,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    code: Iterable[Code | str] = (),
) -> nn.Module | BaseTarget:
    """A model to attack, in evaluation mode.

    Args:
        model: code that builds a network, ``package.module:function`` or ``path/to/file.py:function``; or the folder of a saved
            target.
        weights: of code: a safetensors file or one of torch.save. Keys around the weights and prefixes before their names are found.
        weights_key: where in the file the weights are (``ema``), if there are several.
        kwargs: of code: the function's arguments.
        code: of a saved target: what its card may call (see ``load_target``).

    Raises:
        UsageError: there is no such code, or no such folder.
        TargetError: the code raised, or the weights do not fit.
    """
    if Path(model).is_dir():
        if weights is not None or kwargs:
            raise UsageError(f"{model} is a saved target, which has its weights", fix="leave out weights and arguments")
        return load_target(Path(model), code)
    network = call_by_reference(str(model), dict(kwargs or {}))
    if weights is not None:
        load_weights(network, Path(weights), weights_key)
    return network.eval()
